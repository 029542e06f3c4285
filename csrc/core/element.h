// Element types in C++, for kernels that work on the dtypes themselves.
#pragma once
#include <type_traits>

#include "dtype.h"
#include "half.h"

namespace eager::core {

// bool as stored: 0 or 1.
struct b8 {
  uint8_t value;
};

// Calls f(T{}) with the element type of `t`.
template <class F>
decltype(auto) with_type(DType t, F&& f) {
  switch (t) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::f16:
      return f(f16{});
    case DType::bf16:
      return f(bf16{});
    case DType::i8:
      return f(int8_t{});
    case DType::i16:
      return f(int16_t{});
    case DType::i32:
      return f(int32_t{});
    case DType::i64:
      return f(int64_t{});
    case DType::u8:
      return f(uint8_t{});
    case DType::b8:
      return f(b8{});
  }
  __builtin_unreachable();
}

// The type arithmetic on T is done in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, f16> || std::is_same_v<T, bf16>, float,
                                      std::conditional_t<std::is_same_v<T, b8>, uint8_t, T>>;

template <class T>
inline Arithmetic<T> load(T x) {
  if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>)
    return to_float(x);
  else if constexpr (std::is_same_v<T, b8>)
    return uint8_t(x.value != 0);
  else
    return x;
}

// Floating to integer truncates towards zero, then keeps the low bits; what int64 cannot hold
// becomes its least value, as x86 does.
template <class T, class From>
inline T store(From x) {
  if constexpr (std::is_same_v<T, f16>)
    return to_f16(float(x));
  else if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(float(x));
  else if constexpr (std::is_same_v<T, b8>)
    return {uint8_t(x != From(0))};
  else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<T>)
    return T(x >= From(-0x1p63) && x < From(0x1p63) ? int64_t(x) : INT64_MIN);
  else
    return T(x);
}

}  // namespace eager::core
