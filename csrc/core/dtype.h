// Element types.
#pragma once
#include <cstddef>
#include <cstdint>

namespace eager::core {

enum class DType : uint8_t { f32, f64, f16, bf16, i8, i16, i32, i64, u8, b8 };
inline constexpr int kDTypes = 10;

inline constexpr size_t kItemSize[kDTypes] = {4, 8, 2, 2, 1, 2, 4, 8, 1, 1};
inline constexpr const char* kDTypeName[kDTypes] = {"float32", "float64", "float16", "bfloat16",
                                                    "int8",    "int16",   "int32",   "int64",
                                                    "uint8",   "bool"};

inline size_t item_size(DType t) { return kItemSize[int(t)]; }
inline const char* name(DType t) { return kDTypeName[int(t)]; }
inline bool is_floating(DType t) { return t <= DType::bf16; }
inline bool is_integral(DType t) { return t > DType::bf16 && t != DType::b8; }

// Kernels compute in one of three types; the others are converted block by block.
// f16 and bf16 compute in f32, all integers and bool in i64 (storing truncates, which is exact
// modular arithmetic).
enum class Compute : uint8_t { f32, f64, i64 };
inline Compute compute_type(DType t) {
  return t == DType::f64 ? Compute::f64 : is_floating(t) ? Compute::f32 : Compute::i64;
}

}  // namespace eager::core
