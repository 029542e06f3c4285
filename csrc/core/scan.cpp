// Running sums.
#include <algorithm>
#include <string>

#include "element.h"
#include "kernels.h"
#include "pool.h"

namespace eager::core {
namespace {

// Floating sums run in double, so that long ones keep their precision; integers wrap around.
template <class T>
using Sum = std::conditional_t<std::is_integral_v<T> || std::is_same_v<T, b8>, uint64_t, double>;

// One line of n elements.
template <class T>
void scan_line(const T* x, T* y, int64_t n) {
  Sum<T> sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += Sum<T>(load(x[i]));
    y[i] = store<T>(sum);
  }
}

// Up to kBlock neighbouring lines together: reads whole cache lines when stride > 1.
constexpr int64_t kBlock = 32;
template <class T>
void scan_block(const T* x, T* y, int64_t n, int64_t stride, int64_t lines) {
  Sum<T> sums[kBlock] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < lines; ++j) {
      sums[j] += Sum<T>(load(x[i * stride + j]));
      y[i * stride + j] = store<T>(sums[j]);
    }
}

}  // namespace

Tensors kernel_cumsum(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const int64_t dim = AttrReader(attrs).integer();
  const int64_t ndim = std::max<int64_t>(1, int64_t(x.ndim()));  // a scalar counts as one element
  if (dim < 0 || dim >= ndim)
    fail(ErrorKind::index, op.name, "dimension out of range",
         "a dimension in [0, " + std::to_string(ndim) + ")", std::to_string(dim));
  const DType dtype = result_dtype(op, in, attrs, nullptr);
  TensorRef y = Tensor::empty(x.shape, dtype, x.device);
  if (x.device == Device::meta || x.numel == 0) return {y};
  const TensorRef packed = contiguous(cast(in[0], dtype));
  const int64_t n = x.ndim() ? x.shape[size_t(dim)] : 1;
  int64_t inner = 1;
  for (size_t d = size_t(dim) + 1; d < x.ndim(); ++d) inner *= x.shape[d];
  const int64_t blocks = (inner + kBlock - 1) / kBlock, outer = x.numel / (n * inner);
  const int64_t grain = std::max<int64_t>(1, 16384 / (n * std::min(inner, kBlock)));
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* src = packed->as<T>();
    T* dst = y->as<T>();
    parallel_for(outer * blocks, grain, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        const int64_t line = i % blocks * kBlock, at = i / blocks * n * inner + line;
        if (inner == 1) {
          scan_line(src + at, dst + at, n);
        } else {
          scan_block(src + at, dst + at, n, inner, std::min(kBlock, inner - line));
        }
      }
    });
  });
  return {y};
}

}  // namespace eager::core
