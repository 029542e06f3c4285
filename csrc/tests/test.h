// What the core's tests share beyond csrc/testing: errors by kind, and tensors.
#pragma once
#include <cmath>
#include <functional>
#include <string>

#include "core/op.h"
#include "testing/test.h"

namespace eager::test {

// The expression throws core::Error of this kind.
#define CHECK_FAILS(error_kind, ...)                                                     \
  try {                                                                                  \
    (void)(__VA_ARGS__);                                                                 \
    ::eager::test::failed(__FILE__, __LINE__, "does not throw: " #__VA_ARGS__);          \
  } catch (const ::eager::core::Error& e) {                                              \
    if (e.kind != ::eager::core::ErrorKind::error_kind)                                  \
      ::eager::test::failed(__FILE__, __LINE__, std::string("wrong kind: ") + e.what()); \
  }

// --- tensors ------------------------------------------------------------------------------------

using core::Attrs;
using core::Dims;
using core::DType;
using core::Tensor;
using core::TensorRef;
using core::Tensors;

inline const core::Op& named(const char* name) {
  const core::Op* op = core::find_op(name);
  if (!op) throw Failure(std::string("there is no op ") + name);
  return *op;
}

// A packed tensor whose element i is f(i).
template <class T>
TensorRef make(const Dims& shape, DType dtype, const std::function<T(int64_t)>& f) {
  TensorRef t = Tensor::empty(shape, dtype);
  for (int64_t i = 0; i < t->numel; ++i) t->as<T>()[i] = f(i);
  return t;
}
inline TensorRef floats(const Dims& shape, const std::function<float(int64_t)>& f) {
  return make<float>(shape, DType::f32, f);
}
inline TensorRef floats(const Dims& shape) {
  return floats(shape, [](int64_t i) { return float(i % 97) * 0.25f - 8.0f; });
}
inline TensorRef longs(const Dims& shape, const std::function<int64_t(int64_t)>& f) {
  return make<int64_t>(shape, DType::i64, f);
}

// Element i in row-major order, as a double, whatever the strides and dtype.
inline double at(const TensorRef& t, int64_t i) {
  int64_t offset = 0;
  for (size_t d = t->ndim(); d-- > 0;) {
    offset += i % t->shape[d] * t->strides[d];
    i /= t->shape[d];
  }
  const TensorRef element = Tensor::view(*t, {}, {}, t->offset + offset);
  return *core::cast(element, DType::f64)->as<double>();
}

inline TensorRef transposed(const TensorRef& t) {
  Dims shape(t->shape), strides(t->strides);
  std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
  std::swap(strides[strides.size() - 1], strides[strides.size() - 2]);
  return Tensor::view(*t, shape, strides, t->offset);
}

inline TensorRef call(const char* name, const Tensors& in, const Attrs& attrs = {}) {
  return core::dispatch(named(name), in, attrs)[0];
}

inline bool close(double a, double b, double tolerance = 1e-5) {
  return a == b || std::abs(a - b) <= tolerance * (1 + std::abs(b)) ||
         (std::isnan(a) && std::isnan(b));
}

}  // namespace eager::test
