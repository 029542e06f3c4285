#include "dtype.h"

namespace eager::comm {

const char* name(DType t) {
  static const char* const kNames[] = {"float32", "float64", "float16", "bfloat16", "int8",
                                       "uint8",   "int16",   "int32",   "int64",    "bool"};
  return kNames[int(t)];
}

const char* name(ReduceOp op) {
  static const char* const kNames[] = {"sum", "avg", "min", "max", "prod"};
  return kNames[int(op)];
}

}  // namespace eager::comm
