// float16 and bfloat16: storage types and their conversions, rounding to nearest even.
// Internal linkage, because files compiled for different instruction sets include this.
// The functions are static: files compiled for different instruction sets must not share them.
#pragma once
#include <cstdint>
#include <cstring>

namespace eager::numeric {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

namespace detail {
static inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
static inline float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
}  // namespace detail

static inline float to_float(bf16 x) { return detail::bits_float(uint32_t(x.bits) << 16); }

static inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  // Multiplying by 2^112 moves the exponent bias from 15 to 127 and makes subnormals normal.
  const float value = detail::bits_float(rest) * 0x1p112f;
  // An exponent of all ones must stay one.
  const uint32_t special = rest >= 0x0f800000 ? 0x7f800000 : 0;
  return detail::bits_float(detail::float_bits(value) | special | sign);
}

static inline bf16 to_bf16(float x) {
  const uint32_t u = detail::float_bits(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const bool nan = (u & 0x7fffffff) > 0x7f800000;
  return {uint16_t(nan ? 0x7fc0 : rounded)};
}

static inline f16 to_f16(float x) {
  const uint32_t u = detail::float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  uint32_t h;
  if (magnitude > 0x7f800000) {
    h = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    h = 0x7c00;  // rounds to 65536 or more
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 lets the FPU round at the right bit, 2^-24.
    h = detail::float_bits(detail::bits_float(magnitude) + 0.5f) - 0x3f000000;
  } else {
    h = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  return {uint16_t(sign | h)};
}

}  // namespace eager::numeric
