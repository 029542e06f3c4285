// Kernels of ops whose output is the input's elements under another shape.
#include <algorithm>
#include <string>

#include "kernels.h"

namespace eager::core {
namespace {

[[noreturn]] void bad_shape(const char* op, const std::string& problem, const std::string& expected,
                            const std::string& given, const std::string& hint = "") {
  fail(ErrorKind::shape, op, problem, expected, given, hint);
}

void check_dim(const char* op, int64_t d, size_t ndim) {
  if (d < 0 || d >= int64_t(ndim))
    fail(ErrorKind::index, op, "dimension out of range",
         "a dimension in [0, " + std::to_string(ndim) + ")", std::to_string(d));
}

void check_distinct(const char* op, const Dims& dims, size_t ndim) {
  Small<bool, 8> seen(ndim, false);
  for (int64_t d : dims) {
    check_dim(op, d, ndim);
    if (seen[size_t(d)])
      fail(ErrorKind::value, op, "a dimension is named twice", "distinct dimensions",
           to_string(dims));
    seen[size_t(d)] = true;
  }
}

// The strides under which x's memory reads as `shape` in row-major order; false if there are
// none.  Both have the same number of elements.
bool view_strides(const Tensor& x, const Dims& shape, Dims* strides) {
  if (x.contiguous || x.numel == 0) {
    *strides = contiguous_strides(shape);
    return true;
  }
  // Merge x's dimensions into runs that are contiguous among themselves.
  struct Run {
    int64_t size, stride;
  };
  Small<Run, 6> runs;
  for (size_t d = 0; d < x.ndim(); ++d) {
    const int64_t n = x.shape[d], s = x.strides[d];
    if (n == 1) continue;
    if (!runs.empty() && runs.back().stride == s * n) {
      runs.back() = {runs.back().size * n, s};
    } else {
      runs.push_back({n, s});
    }
  }
  strides->resize(shape.size());
  size_t left_runs = runs.size();
  int64_t left = 1, stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    const int64_t n = shape[d];
    if (n != 1 && left == 1) {
      --left_runs;  // there is one: the element counts agree
      left = runs[left_runs].size;
      stride = runs[left_runs].stride;
    }
    (*strides)[d] = stride;
    if (n == 1) continue;
    if (left % n) return false;
    left /= n;
    stride *= n;
  }
  return true;
}

void check_counts(const char* op, const char* what, size_t given, size_t ndim) {
  if (given != ndim)
    bad_shape(op, std::string(what) + " does not match the tensor's dimensions",
              std::to_string(ndim) + " values", std::to_string(given));
}

}  // namespace

Tensors kernel_reshape(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const Dims shape = AttrReader(attrs).ints();
  int64_t count = 1;
  bool fits = true;
  for (int64_t n : shape) {
    if (n < 0) bad_shape(op.name, "negative size", "sizes that are not negative", to_string(shape));
    fits &= !__builtin_mul_overflow(count, n, &count);
  }
  if (!fits || count != x.numel)
    bad_shape(op.name, "the shape does not hold the tensor's elements",
              std::to_string(x.numel) + " elements, as in " + to_string(x.shape), to_string(shape));
  Dims strides;
  if (view_strides(x, shape, &strides)) return {Tensor::view(x, shape, strides, x.offset)};
  TensorRef packed = contiguous(in[0]);
  packed->shape = shape;
  packed->strides = contiguous_strides(shape);
  return {packed};
}

Tensors kernel_permute(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const Dims dims = AttrReader(attrs).ints();
  check_counts(op.name, "the permutation", dims.size(), x.ndim());
  check_distinct(op.name, dims, x.ndim());
  Dims shape, strides;
  for (int64_t d : dims) {
    shape.push_back(x.shape[size_t(d)]);
    strides.push_back(x.strides[size_t(d)]);
  }
  return {Tensor::view(x, shape, strides, x.offset)};
}

Tensors kernel_expand(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const Dims shape = AttrReader(attrs).ints();
  if (shape.size() < x.ndim())
    bad_shape(op.name, "the shape has too few dimensions",
              "at least " + std::to_string(x.ndim()) + " dimensions for " + to_string(x.shape),
              to_string(shape));
  const size_t lead = shape.size() - x.ndim();
  Dims strides(shape.size(), 0);
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 0)
      bad_shape(op.name, "negative size", "sizes that are not negative", to_string(shape));
    if (d < lead) continue;
    const int64_t n = x.shape[d - lead];
    if (n == shape[d]) {
      strides[d] = x.strides[d - lead];
    } else if (n != 1) {
      bad_shape(op.name, "dimension " + std::to_string(d) + " cannot be expanded",
                "size " + std::to_string(n) + ", because only size 1 can be repeated",
                std::to_string(shape[d]) + " in " + to_string(shape));
    }
  }
  return {Tensor::view(x, shape, strides, x.offset)};
}

Tensors kernel_slice(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  AttrReader reader(attrs);
  const Dims starts = reader.ints(), sizes = reader.ints(), steps = reader.ints();
  const Dims drop = reader.ints();
  check_region(op.name, x.shape, starts, sizes, steps);
  check_distinct(op.name, drop, x.ndim());
  for (int64_t d : drop)
    if (sizes[size_t(d)] != 1)
      bad_shape(op.name, "cannot drop dimension " + std::to_string(d), "size 1",
                std::to_string(sizes[size_t(d)]));
  Dims shape, strides;
  int64_t offset = x.offset;
  const bool empty = element_count(sizes) == 0;
  for (size_t d = 0; d < x.ndim(); ++d) {
    if (!empty) offset += starts[d] * x.strides[d];
    if (std::find(drop.begin(), drop.end(), int64_t(d)) != drop.end()) continue;
    shape.push_back(sizes[d]);
    // A step that leads nowhere may be of any size.
    strides.push_back(empty || sizes[d] == 1 ? x.strides[d] : x.strides[d] * steps[d]);
  }
  return {Tensor::view(x, shape, strides, offset)};
}

Tensors kernel_flip(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const Dims dims = AttrReader(attrs).ints();
  check_distinct(op.name, dims, x.ndim());
  TensorRef y = Tensor::empty(x.shape, x.dtype, x.device);
  if (x.device == Device::meta || x.numel == 0) return {y};
  Dims strides = x.strides;
  int64_t offset = x.offset;
  for (int64_t d : dims) {
    offset += (x.shape[size_t(d)] - 1) * strides[size_t(d)];
    strides[size_t(d)] = -strides[size_t(d)];
  }
  copy_into(*Tensor::view(x, x.shape, strides, offset), *y);
  return {y};
}

Tensors kernel_split(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  AttrReader reader(attrs);
  const Dims sizes = reader.ints();
  const int64_t dim = reader.integer();
  check_dim(op.name, dim, x.ndim());
  const int64_t n = x.shape[size_t(dim)], stride = x.strides[size_t(dim)];
  int64_t sum = 0;
  bool wrong = false;
  for (int64_t s : sizes) wrong |= s < 0 || __builtin_add_overflow(sum, s, &sum);
  if (sum != n || wrong)
    bad_shape(op.name, "the sizes do not add up to the dimension",
              "sizes that sum to " + std::to_string(n) + ", the size of dimension " +
                  std::to_string(dim) + " of " + to_string(x.shape),
              to_string(sizes));
  Tensors pieces;
  Dims shape = x.shape;
  int64_t start = 0;
  for (int64_t s : sizes) {
    shape[size_t(dim)] = s;
    pieces.push_back(Tensor::view(x, shape, x.strides, x.offset + (x.numel ? start * stride : 0)));
    start += s;
  }
  return pieces;
}

Tensors kernel_detach(const Op&, const Tensors& in, const Attrs&, Tensor*) {
  const Tensor& x = *in[0];
  TensorRef y = Tensor::view(x, x.shape, x.strides, x.offset);
  // Not a view to the tape: in-place changes of y are no part of x's history.
  y->is_view = false;
  return {y};
}

void check_region(const char* op, const Dims& shape, const Dims& starts, const Dims& sizes,
                  const Dims& steps) {
  check_counts(op, "starts", starts.size(), shape.size());
  check_counts(op, "sizes", sizes.size(), shape.size());
  check_counts(op, "steps", steps.size(), shape.size());
  for (size_t d = 0; d < shape.size(); ++d) {
    if (steps[d] < 1)
      fail(ErrorKind::value, op, "steps must be positive", "steps of at least 1", to_string(steps),
           "flip the tensor first");
    const bool empty = sizes[d] == 0;
    if (sizes[d] < 0 || starts[d] < 0 ||
        (!empty && (starts[d] >= shape[d] || (shape[d] - 1 - starts[d]) / steps[d] < sizes[d] - 1)))
      fail(ErrorKind::index, op, "the region leaves dimension " + std::to_string(d),
           "indices in [0, " + std::to_string(shape[d]) + ")",
           "start " + std::to_string(starts[d]) + ", size " + std::to_string(sizes[d]) + ", step " +
               std::to_string(steps[d]));
  }
}

}  // namespace eager::core
