// The arithmetic of reductions: one function for every element type and operation.
#pragma once
#include "dtype.h"

namespace eager::comm {

// Throws Error(invalid) if there is no such reduction: avg needs a floating-point type, as in
// torch.distributed.
void check_reduction(const char* op_name, DType, ReduceOp);

// For each of `count` elements: out[j] = in[0] op in[1] op … op in[n-1], from left to right, for
// every j < m.  n >= 1, m >= 1.  `avg` divides the sum by `divisor` (the number of ranks); with
// divisor 0 it only adds, so that a sum can travel in several hops and be divided once at the end.
// Pointers have any alignment.  An output may be an input, but must not overlap one partly.
//
// float16 and bfloat16 are combined in float32 and rounded once per call.  min and max give NaN if
// an operand is NaN.  Integers wrap around.  bool: sum and max are "or", prod and min are "and".
void reduce(DType, ReduceOp, const void* const* in, int n, void* const* out, int m, size_t count,
            int divisor);

// into = into op with.
inline void accumulate(DType t, ReduceOp op, void* into, const void* with, size_t count) {
  const void* in[2] = {into, with};
  reduce(t, op, in, 2, &into, 1, count, 0);
}

}  // namespace eager::comm
