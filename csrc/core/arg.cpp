// Positions of extremes.  The first of equal values wins, and a NaN beats every number.
#include <algorithm>
#include <string>
#include <vector>

#include "element.h"
#include "kernels.h"
#include "pool.h"

namespace eager::core {
namespace {

// Whether x takes the place of `best`, which came earlier.
template <bool Max, class A>
inline bool beats(A x, A best) {
  if constexpr (std::is_floating_point_v<A>) {
    if (best != best) return false;
    if (x != x) return true;
  }
  return Max ? x > best : x < best;
}

template <bool Max, class T>
void arg_lines(const T* x, int64_t* y, int64_t n, int64_t inner, int64_t outer) {
  using A = Arithmetic<T>;
  const int64_t grain = std::max<int64_t>(1, 16384 / (n * inner));
  parallel_for(outer, grain, [&](int64_t a, int64_t b) {
    std::vector<A> best(static_cast<size_t>(inner));
    for (int64_t o = a; o < b; ++o) {
      const T* from = x + o * n * inner;
      int64_t* to = y + o * inner;
      for (int64_t j = 0; j < inner; ++j) {
        best[size_t(j)] = load(from[j]);
        to[j] = 0;
      }
      for (int64_t i = 1; i < n; ++i)
        for (int64_t j = 0; j < inner; ++j) {
          const A value = load(from[i * inner + j]);
          if (!beats<Max>(value, best[size_t(j)])) continue;
          best[size_t(j)] = value;
          to[j] = i;
        }
    }
  });
}

template <bool Max>
Tensors arg_extreme(const Op& op, const Tensors& in, const Attrs& attrs) {
  const Tensor& x = *in[0];
  AttrReader reader(attrs);
  const int64_t dim = reader.integer();
  const bool keepdim = reader.boolean();
  const int64_t ndim = std::max<int64_t>(1, int64_t(x.ndim()));  // a scalar counts as one element
  if (dim < 0 || dim >= ndim)
    fail(ErrorKind::index, op.name, "dimension out of range",
         "a dimension in [0, " + std::to_string(ndim) + ")", std::to_string(dim));
  Dims shape;
  int64_t n = 1, inner = 1;
  for (size_t d = 0; d < x.ndim(); ++d) {
    if (d == size_t(dim)) {
      n = x.shape[d];
      if (keepdim) shape.push_back(1);
    } else {
      if (d > size_t(dim)) inner *= x.shape[d];
      shape.push_back(x.shape[d]);
    }
  }
  if (n == 0)
    fail(ErrorKind::index, op.name, "dimension " + std::to_string(dim) + " is empty",
         "at least one element to choose from", to_string(x.shape));
  TensorRef y = Tensor::empty(shape, DType::i64, x.device);
  if (x.device == Device::meta || y->numel == 0) return {y};
  const TensorRef packed = contiguous(in[0]);
  with_type(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    arg_lines<Max>(packed->as<T>(), y->as<int64_t>(), n, inner, x.numel / (n * inner));
  });
  return {y};
}

}  // namespace

Tensors kernel_argmax(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  return arg_extreme<true>(op, in, attrs);
}

Tensors kernel_argmin(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  return arg_extreme<false>(op, in, attrs);
}

}  // namespace eager::core
