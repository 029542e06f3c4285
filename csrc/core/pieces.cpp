// Kernels of ops whose output is pieced together from regions of inputs.
#include <string>

#include "kernels.h"
#include "placement.h"

namespace eager::core {
namespace {

// PyTorch's cat ignores such tensors whatever the others' shapes are.
bool is_nothing(const Tensor& x) { return x.ndim() == 1 && x.numel == 0; }

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.storage == b.storage && a.offset == b.offset && a.shape == b.shape &&
         a.strides == b.strides && a.dtype == b.dtype;
}

}  // namespace

Tensors kernel_cat(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  if (in.empty())
    fail(ErrorKind::value, op.name, "nothing to concatenate", "at least one tensor", "none");
  const int64_t dim = AttrReader(attrs).integer();
  const Tensor* first = in[0].get();
  for (const TensorRef& x : in) {
    if (is_nothing(*x)) continue;
    first = x.get();
    break;
  }
  if (dim < 0 || dim >= int64_t(first->ndim()))
    fail(ErrorKind::index, op.name, "dimension out of range",
         "a dimension in [0, " + std::to_string(first->ndim()) + ")", std::to_string(dim));
  Dims shape = first->shape;
  shape[size_t(dim)] = 0;
  for (const TensorRef& x : in) {
    if (is_nothing(*x)) continue;
    bool fits = x->ndim() == shape.size();
    for (size_t d = 0; fits && d < shape.size(); ++d)
      fits = d == size_t(dim) || x->shape[d] == shape[d];
    if (!fits)
      fail(ErrorKind::shape, op.name, "the tensors do not fit together",
           "sizes equal to " + to_string(first->shape) + " except in dimension " +
               std::to_string(dim),
           to_string(x->shape));
    if (__builtin_add_overflow(shape[size_t(dim)], x->shape[size_t(dim)], &shape[size_t(dim)]))
      fail(ErrorKind::shape, op.name, "the tensors are too large together", "fewer than 2**63",
           to_string(x->shape));
  }
  TensorRef y = result_memory(shape, result_dtype(op, in, attrs, nullptr), in[0]->device);
  if (y->device == Device::meta) return {y};
  int64_t at = 0;
  for (const TensorRef& x : in) {
    if (is_nothing(*x)) continue;
    if (x->numel)
      copy_into(*x, *Tensor::view(*y, x->shape, y->strides, at * y->strides[size_t(dim)]));
    at += x->shape[size_t(dim)];
  }
  return {y};
}

Tensors kernel_slice_scatter(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out) {
  const Tensor& x = *in[0];
  AttrReader reader(attrs);
  const Dims starts = reader.ints(), sizes = reader.ints(), steps = reader.ints();
  check_region(op.name, x.shape, starts, sizes, steps);
  if (!(in[1]->shape == sizes))
    fail(ErrorKind::shape, op.name, "the source does not fill the region",
         "shape " + to_string(sizes), to_string(in[1]->shape), "expand or reshape the source");
  const bool meta = x.device == Device::meta;
  TensorRef y = out ? TensorRef(out) : result_memory(x.shape, x.dtype, x.device);
  if (meta || x.numel == 0) return {y};
  TensorRef src = in[1];
  // The source may be another part of the tensor that is written to.
  if (src->storage == y->storage) {
    TensorRef copy = Tensor::empty(src->shape, src->dtype);
    copy_into(*src, *copy);
    src = copy;
  }
  if (!same_layout(x, *y)) {
    TensorRef whole = in[0];
    if (x.storage == y->storage) {
      whole = Tensor::empty(x.shape, x.dtype);
      copy_into(x, *whole);
    }
    copy_into(*whole, *y);
  }
  if (src->numel == 0) return {y};
  Dims strides;
  int64_t offset = y->offset;
  for (size_t d = 0; d < sizes.size(); ++d) {
    offset += starts[d] * y->strides[d];
    strides.push_back(sizes[d] == 1 ? y->strides[d] : steps[d] * y->strides[d]);
  }
  copy_into(*src, *Tensor::view(*y, sizes, strides, offset));
  return {y};
}

}  // namespace eager::core
