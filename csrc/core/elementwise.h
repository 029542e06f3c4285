// The sweep of a generated loop over broadcast, strided and converted operands.
#pragma once
#include "lanes.h"
#include "op.h"

namespace eager::core {

// What a loop is to be run on.  Shapes of inputs broadcast to `shape`, which outputs have.
struct SweepSpec {
  Loop loop;
  const int64_t* attrs;  // must outlive the sweep
  const Dims* shape;
  const Tensors* in;
  const Tensors* out;
  const Lane* in_lanes;  // one per input
  Lane out_lane;
};

inline constexpr int kMaxOperands = 24;

// Built once per call; run() may then be called for disjoint ranges from several threads.
class Sweep {
 public:
  explicit Sweep(const SweepSpec&);
  int64_t numel() const { return numel_; }
  // Computes the output elements [begin, end), counted in row-major order.
  void run(int64_t begin, int64_t end) const;

 private:
  struct Operand {
    char* data;
    int64_t item;      // bytes of an element in memory
    int64_t buffered;  // bytes of an element in a buffer
    bool direct;       // memory is what the loop takes
    bool linear;       // elements lie one after another in row-major order
    bool constant;     // input of one element, already converted in `value`
    Load load;
    Store store;
    int64_t value;
  };
  struct Cursor;

  void flat(const SweepSpec&);
  void strided(const SweepSpec&);
  int64_t stride(int operand, size_t d) const { return strides_[size_t(operand) * ndim_ + d]; }
  void segment(const Cursor&, int64_t column, int64_t n) const;
  void packed(int64_t begin, int64_t end) const;
  void rows(int64_t begin, int64_t end) const;
  const char* gather(int operand, Cursor from, int64_t n, char* buffer) const;
  void scatter(int operand, Cursor to, int64_t n, const char* buffer) const;

  Loop loop_;
  const int64_t* attrs_;
  int inputs_, outputs_;  // operands: inputs, then outputs
  Operand operands_[kMaxOperands];
  int64_t numel_;
  size_t ndim_ = 1;  // after merging dimensions
  Dims sizes_;
  Small<int64_t, 16> strides_;  // [operand][dimension], in elements
  uint32_t uniform_ = 0;        // inputs that do not move along the last dimension
  uint32_t constants_ = 0;      // inputs that do not move at all
  bool plain_ = true;           // segments need no buffer
  bool crossing_ = false;       // an operand runs across memory lines along the last dimension
};

// Runs the sweep on the pool.
void run_parallel(const Sweep&);

// The result of an elementwise op on its inputs.
struct Inferred {
  Dims shape;
  DType dtype, compute;
  Device device;
};
Inferred infer_elementwise(const Op&, const Tensors& in, const Attrs&);
// Throws unless results of that kind can be written into `target`.
void check_target(const Op&, const Dims& shape, DType dtype, const Tensor& target);
// A sweep of an elementwise op into tensors that do not overlap its inputs, except that they may
// be an input.
Sweep elementwise_sweep(const Op&, const Tensors& in, const int64_t* attrs, const Inferred&,
                        const Tensors& out);

// Whether writing `out` element by element can change elements of `in` before they are read.
bool overlaps(const Tensor& in, const Tensor& out);

// Small same-shape operands, or one and a number: no planning at all.  Null if it does not apply.
// `b` null: unary.  `out` null: allocates.
TensorRef fast_elementwise(const Op&, const Tensor& a, const Tensor* b, Tensor* out);

}  // namespace eager::core
