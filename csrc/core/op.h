// Ops as the core sees them, and dispatch.  The table is generated from the Python registry.
#pragma once
#include <cstring>
#include <vector>

#include "tensor.h"
#include "threadlocal.h"

namespace eager::core {

enum class Kind : uint8_t { elementwise, broadcast, view, reduce, contract, opaque };
// Numbering is that of eager.op.Promotion.
enum class Promotion : uint8_t {
  promote,
  to_float,
  compare,
  logical,
  integral,
  numeric,
  select,
  attr,
  first,
  floating,
  sum,
  index,
  boolean
};
enum class AttrType : uint8_t { integer, boolean, floating, ints, dtype };

// Attribute values in the order of the op's schema.  integer, boolean, dtype: one slot; floating:
// its bits in one slot; ints: a count, then the values.
struct Attrs {
  Small<int64_t, 16> slots;
  Attrs& integer(int64_t v) {
    slots.push_back(v);
    return *this;
  }
  Attrs& floating(double v) {
    int64_t bits;
    std::memcpy(&bits, &v, 8);
    return integer(bits);
  }
  template <class Range>
  Attrs& ints(const Range& v) {
    slots.push_back(int64_t(v.size()));
    for (auto x : v) slots.push_back(x);
    return *this;
  }
};

class AttrReader {
 public:
  explicit AttrReader(const Attrs& a) : p_(a.slots.data()) {}
  int64_t integer() { return *p_++; }
  bool boolean() { return *p_++ != 0; }
  DType dtype() { return DType(*p_++); }
  double floating() {
    double v;
    std::memcpy(&v, p_++, 8);
    return v;
  }
  Dims ints() {
    int64_t n = *p_++;
    Dims d(p_, p_ + n);
    p_ += n;
    return d;
  }

 private:
  const int64_t* p_;
};

using Tensors = Small<TensorRef, 4>;
struct Op;

// Runs one op outside the tape.  On meta inputs: only infers.  `out`, when not null, is the target
// of an in-place call: a kernel of an op with one output may write the result into it and return
// it, if it can do so with the result's shape and dtype and however `out` overlaps the inputs.
// Otherwise it ignores `out`, and dispatch checks the result against the target and copies.
using Kernel = Tensors (*)(const Op&, const Tensors& in, const Attrs&, Tensor* out);

// A generated loop over n contiguous elements in one compute type.  Inputs that are `uniform`
// (bit i set for input i) hold one element.  An output may be the very memory of an input, but
// must not overlap one otherwise.  `first` is the flat index of element 0; `attrs` holds the op's
// integer, boolean and floating attributes in the schema's order (ints and dtype are left out).
// Inputs and outputs are in the compute type, but
//  - booleans are unsigned char 0 or 1: the outputs of COMPARE, LOGICAL and BOOL ops, the inputs
//    of LOGICAL ops (converted by != 0; one loop stands under every compute type), and input 0 of
//    SELECT ops and of their gradients;
//  - the inputs of `indexed` ops are int64.
using Loop = void (*)(const void* const* in, void* const* out, int64_t n, uint32_t uniform,
                      int64_t first, const int64_t* attrs);
inline constexpr int kIsas = 3;  // baseline, avx2+fma, avx512
// [isa][Compute]; null where the op is not defined for that compute type
struct Loops {
  Loop at[kIsas][3];
};

// Folds: over `n` elements with stride 1 into one value; and row-wise: acc[j] = combine(acc[j],
// map(x[j])) for j < n.  State and output are in the compute type.
struct FoldLoops {
  // writes the folded value of x[0..n) to *out; combines in a tree, so any n is accurate
  void (*inner)(const void* x, int64_t n, void* out);
  void (*outer)(const void* x, int64_t n, void* acc);
  // folds two states: acc[j] = combine(acc[j], x[j]), without map
  void (*merge)(const void* x, int64_t n, void* acc);
  void (*identity)(void* out);
};
struct Folds {
  FoldLoops at[kIsas][3];
};

// How to compute one input's gradient of an elementwise op without recording it.
struct GradLoop {
  enum Mode : uint8_t { none, pass, loop };  // none: no gradient; pass: it is g itself
  Mode mode;
  uint8_t n_args;
  uint8_t args[6];  // what each kernel input is: 0 = g, 1 = y, 2 + i = x_i
  const Loops* loops;
};

struct Op {
  const char* name;
  uint16_t id;
  Kind kind;
  Promotion promotion;
  bool indexed;    // elementwise op whose body reads the flat index
  int8_t inputs;   // -1: variadic
  int8_t outputs;  // 0: as many as the attribute `sizes` (the first attr) has values
  bool differentiable;
  bool saves_output;
  uint32_t saves_inputs;  // bit i: the vjp reads input i's data (variadic ops: bit 0 for all)
  uint8_t n_attrs;
  const AttrType* attr_types;
  const char* const* attr_names;
  Kernel kernel;          // never null: generic elementwise, reduce, a core kernel, or foreign
  const Loops* loops;     // generated elementwise forward
  const Folds* folds;     // generated reduction
  const GradLoop* grads;  // one per input; null if the op is not elementwise
};

const Op& op(uint16_t id);
int op_count();
const Op* find_op(const char* name);
const char* registry_hash();  // of the definitions the table was generated from
int isa();                    // chosen once: cpuid, lowered by EAGER_ISA=baseline|avx2|avx512

// The kernel of ops whose impl is a Python function; csrc/bind installs it.
extern Kernel foreign_kernel;

// The one place where a recorder can stand.  Null unless one is installed.
struct Recorder {
  virtual ~Recorder() = default;
  // Same contract as dispatch(); `target` as there.
  virtual Tensors process(const Op&, const Tensors& in, const Attrs&, Tensor* target) = 0;
  // Same contract as multi_update().
  virtual void process_multi(const Op&, const std::vector<Tensors>& inputs,
                             const std::vector<Tensors>& targets) = 0;
  virtual void grad_written(Tensor& leaf) = 0;  // backward has set or added to leaf.grad
};
EAGER_THREAD_LOCAL(extern, Recorder*, recorder);

// Every op call: hands it to the recorder if there is one, else execute().
Tensors dispatch(const Op&, const Tensors& in, const Attrs&, Tensor* target = nullptr);
// Checks, runs the kernel, and records the tape if a gradient is wanted.  With `target`, the
// result is written into it: its version goes up and its history becomes this op.
Tensors execute(const Op&, const Tensors& in, const Attrs&, Tensor* target = nullptr);
// Hot forms for ops with one output and no attributes.
TensorRef unary(const Op&, const TensorRef&);
TensorRef binary(const Op&, const TensorRef&, const TensorRef&);

// Runs an elementwise op with several outputs on many sets of tensors in one parallel sweep:
// outputs of inputs[i] are written into targets[i], whose versions go up.  Takes no attributes and
// records no tape; a target that is a leaf that requires grad needs grad mode off.
void multi_update(const Op&, const std::vector<Tensors>& inputs,
                  const std::vector<Tensors>& targets);

// Throws unless `target` may be written in place: not readonly, no element stored twice, and
// not a leaf that requires grad while grad mode is on.
void check_writable(const char* op, Tensor& target);

// Result dtype and shape rules, shared by kernels.
// `scalar`: 0-dimensional; `weak`: from a Python number.
DType promote(DType a, bool a_weak, bool a_scalar, DType b, bool b_weak, bool b_scalar);
bool can_cast(DType from, DType to);  // in-place results: bool < integers < floating
// Applies the op's Promotion; `compute`, when not null, gets the dtype that inputs are converted
// to.  Throws Error(dtype).
DType result_dtype(const Op&, const Tensors& in, const Attrs&, DType* compute);
Dims broadcast_shapes(const char* op, const Dims& a, const Dims& b);

}  // namespace eager::core
