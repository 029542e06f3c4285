// The body of lanes_<isa>.cpp, which are this file compiled for three instruction sets.
// Everything here has internal linkage: one version must not replace another at link time.
#include <limits>
#include <type_traits>

#include "half.h"
#include "lanes.h"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace eager::core {
namespace {

struct Bool {
  uint8_t value;
};

template <int>
struct TypeOf;
template <>
struct TypeOf<int(DType::f32)> {
  using type = float;
};
template <>
struct TypeOf<int(DType::f64)> {
  using type = double;
};
template <>
struct TypeOf<int(DType::f16)> {
  using type = f16;
};
template <>
struct TypeOf<int(DType::bf16)> {
  using type = bf16;
};
template <>
struct TypeOf<int(DType::i8)> {
  using type = int8_t;
};
template <>
struct TypeOf<int(DType::i16)> {
  using type = int16_t;
};
template <>
struct TypeOf<int(DType::i32)> {
  using type = int32_t;
};
template <>
struct TypeOf<int(DType::i64)> {
  using type = int64_t;
};
template <>
struct TypeOf<int(DType::u8)> {
  using type = uint8_t;
};
template <>
struct TypeOf<int(DType::b8)> {
  using type = Bool;
};

template <class From>
static inline auto widen(From x) {
  if constexpr (std::is_same_v<From, f16> || std::is_same_v<From, bf16>) {
    return to_float(x);
  } else if constexpr (std::is_same_v<From, Bool>) {
    return uint8_t(x.value != 0);
  } else {
    return x;
  }
}

template <class To, class From>
static inline To convert(From x) {
  const auto v = widen(x);
  using V = std::remove_const_t<decltype(v)>;
  if constexpr (std::is_same_v<To, Bool>) {
    return {uint8_t(v != V(0))};
  } else if constexpr (std::is_same_v<To, f16>) {
    return to_f16(float(v));
  } else if constexpr (std::is_same_v<To, bf16>) {
    return to_bf16(float(v));
  } else if constexpr (std::is_floating_point_v<V> && std::is_integral_v<To>) {
    const bool fits = v >= V(-0x1p63) && v < V(0x1p63);
    return To(fits ? int64_t(v) : std::numeric_limits<int64_t>::min());
  } else {
    return To(v);
  }
}

#if defined(__F16C__)
// The compiler does not find these instructions by itself.
static inline int64_t load_half(const f16* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(h));
  }
  return i;
}
static inline int64_t store_half(const float* src, f16* dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i), h);
  }
  return i;
}
#endif

template <class From, class To>
static void load(const void* source, int64_t stride, void* target, int64_t n) {
  const From* src = static_cast<const From*>(source);
  To* dst = static_cast<To*>(target);
  int64_t i = 0;
  if (stride == 1) {
#if defined(__F16C__)
    if constexpr (std::is_same_v<From, f16> && std::is_same_v<To, float>)
      i = load_half(src, dst, n);
#endif
    for (; i < n; ++i) dst[i] = convert<To>(src[i]);
  } else {
    for (; i < n; ++i) dst[i] = convert<To>(src[i * stride]);
  }
}

template <class From>
static void load_truth(const void* source, int64_t stride, void* target, int64_t n) {
  const From* src = static_cast<const From*>(source);
  int64_t* dst = static_cast<int64_t*>(target);
  for (int64_t i = 0; i < n; ++i) dst[i] = convert<Bool>(src[i * stride]).value;
}

template <class From, class To>
static void store(const void* source, void* target, int64_t stride, int64_t n) {
  const From* src = static_cast<const From*>(source);
  To* dst = static_cast<To*>(target);
  int64_t i = 0;
  if (stride == 1) {
#if defined(__F16C__)
    if constexpr (std::is_same_v<From, float> && std::is_same_v<To, f16>)
      i = store_half(src, dst, n);
#endif
    for (; i < n; ++i) dst[i] = convert<To>(src[i]);
  } else {
    for (; i < n; ++i) dst[i * stride] = convert<To>(src[i]);
  }
}

template <class Table, int... T>
static constexpr void fill_loads(Table& t, std::integer_sequence<int, T...>) {
  ((t.load[T][0] = load<typename TypeOf<T>::type, float>,
    t.load[T][1] = load<typename TypeOf<T>::type, double>,
    t.load[T][2] = load<typename TypeOf<T>::type, int64_t>,
    t.load[T][3] = load<typename TypeOf<T>::type, Bool>,
    t.load[T][4] = load_truth<typename TypeOf<T>::type>),
   ...);
}

template <class Table, int... T>
static constexpr void fill_stores(Table& t, std::integer_sequence<int, T...>) {
  ((t.store[0][T] = store<float, typename TypeOf<T>::type>,
    t.store[1][T] = store<double, typename TypeOf<T>::type>,
    t.store[2][T] = store<int64_t, typename TypeOf<T>::type>,
    t.store[3][T] = store<Bool, typename TypeOf<T>::type>,
    t.store[4][T] = store<int64_t, typename TypeOf<T>::type>),
   ...);
}

static constexpr Conversions make_conversions() {
  Conversions t{};
  fill_loads(t, std::make_integer_sequence<int, kDTypes>());
  fill_stores(t, std::make_integer_sequence<int, kDTypes>());
  return t;
}

}  // namespace
}  // namespace eager::core
