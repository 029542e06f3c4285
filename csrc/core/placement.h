// Gradients in memory given beforehand, such as a view into a bucket that other processes read.
//
// A leaf's GradBuffer names the memory.  Backward *lends* it to the op that computes the leaf's
// first gradient: while that op runs, a kernel whose result would fill exactly this memory takes it
// instead of memory of its own.  What arrives at the leaf and is not in the memory is copied there,
// and counted.
#pragma once
#include "tensor.h"

namespace eager::core {

struct GradBuffer : Counted {
  TensorRef view;                   // becomes leaf.grad; dense, no element stored twice
  uint64_t placed = 0, copied = 0;  // first gradients that were computed in place, and others

  explicit GradBuffer(TensorRef view) : view(std::move(view)) {}
  // A tensor like `view`, over a storage of its own: who holds it is seen from that storage's
  // count.  Null while an earlier loan is in use.
  TensorRef lend();
  // Whether a gradient in the lent memory is exactly `place` (a view of what lend() gave), and
  // only `holders` tensors know of the memory.
  bool holds(const Tensor& g, const Tensor& place, int holders) const;
  // Whoever still holds the lent memory gets a copy, so that it can be written.
  void reclaim();
  // Makes `g` the contents of `view`, which it returns; a copy of g while an op is computing into
  // the memory.
  TensorRef settle(TensorRef g);

  bool writing = false;  // an op that was lent the memory is running

  static void destroy(GradBuffer* b) { delete b; }

 private:
  Ref<Storage> lent_;
};

// The first gradient that backward brings to the leaf `t` while it has none shall live in `view`,
// which becomes t.grad.  Null ends this.  A gradient that is there stays where it is.
// Throws Error(autograd) unless t is a leaf that requires grad; Error(shape), Error(dtype),
// Error(device) or Error(value) if `view` is not fit to be its gradient.
void set_grad_buffer(Tensor& t, const TensorRef& view);

// Whether `t` is a gradient in memory that a GradBuffer has lent.
bool is_lent(const Tensor& t);

// Whether the storage of `t` covers some of the memory that `block`, which is dense, lies in.
bool in_memory_of(const Tensor& t, const Tensor& block);

// While it lives, result_memory() may give out the memory of `place` once.  Null: nothing to give.
class PlacementScope {
 public:
  explicit PlacementScope(const Tensor* place);
  ~PlacementScope();
  PlacementScope(const PlacementScope&) = delete;

 private:
  const Tensor* before_;
};

// Memory for a kernel's result: that of the placement in scope, if a packed tensor of this shape
// and dtype fills it with each dimension where the wanted gradient has it; else new memory.
// The kernel must write every element, and read none before.
TensorRef result_memory(const Dims& shape, DType dtype, Device device = Device::cpu);

}  // namespace eager::core
