// Element types and reductions of collectives.
#pragma once
#include <cstddef>
#include <cstdint>

namespace eager::comm {

enum class DType : uint8_t { f32, f64, f16, bf16, i8, u8, i16, i32, i64, boolean };
enum class ReduceOp : uint8_t { sum, avg, min, max, prod };

inline constexpr size_t item_size(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    default:
      return 1;
  }
}
const char* name(DType);     // "float32"
const char* name(ReduceOp);  // "sum"

}  // namespace eager::comm
