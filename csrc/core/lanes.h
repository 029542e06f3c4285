// Conversions between the dtypes in memory and the types that kernels compute in.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "op.h"

namespace eager::core {

// What a kernel's buffer holds.  The first three are Compute's.
// boolean: unsigned char 0 or 1, by != 0; truth: the same as int64.
enum class Lane : uint8_t { f32, f64, i64, boolean, truth };
inline constexpr int kLanes = 5;
inline Lane lane(Compute c) { return Lane(c); }
inline size_t lane_size(Lane l) { return l == Lane::f32 ? 4 : l == Lane::boolean ? 1 : 8; }

// Whether memory of this dtype can be used as such a buffer as it stands.
inline bool is_direct(DType t, Lane l) {
  switch (l) {
    case Lane::f32:
      return t == DType::f32;
    case Lane::f64:
      return t == DType::f64;
    case Lane::i64:
      return t == DType::i64;
    default:
      return l == Lane::boolean && t == DType::b8;
  }
}

// dst[i] = convert(src[i * stride]), i < n; strides in elements.
using Load = void (*)(const void* src, int64_t stride, void* dst, int64_t n);
// dst[i * stride] = convert(src[i]).  Integers are truncated, bool is != 0; a float that no int64
// can represent becomes the least int64.
using Store = void (*)(const void* src, void* dst, int64_t stride, int64_t n);

struct Conversions {
  Load load[kDTypes][kLanes];
  Store store[kLanes][kDTypes];  // truth as i64
};
// One per instruction set, from lanes_<isa>.cpp.
extern const Conversions kBaselineConversions, kAvx2Conversions, kAvx512Conversions;
inline const Conversions& conversions() {
  const int level = isa();
  return level == 2 ? kAvx512Conversions : level == 1 ? kAvx2Conversions : kBaselineConversions;
}

}  // namespace eager::core
