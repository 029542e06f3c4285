// Matrix products of one pair of matrices.
#pragma once
#include "dtype.h"

namespace eager::core {

// Where the BLAS library lies; used when the first product is computed.  The environment variable
// EAGER_BLAS takes precedence.
void set_blas_path(const char* path);
// Loads the library if it is not loaded; throws Error(internal) that says how to get one.
void require_blas();

// c[m, n] = a[m, k] @ b[k, n], or += if `accumulate`.  Strides in elements; c's columns are dense
// and it overlaps neither a nor b.
struct Gemm {
  DType dtype;
  int64_t m, n, k;
  const void* a;
  int64_t a_row, a_col;
  const void* b;
  int64_t b_row, b_col;
  void* c;
  int64_t c_row;
  bool accumulate;
};

// Whether BLAS reads a matrix of such strides without a copy.
bool blas_layout(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride);

// On the calling thread.  float32 and float64 through BLAS, for which a and b need a
// blas_layout(); integers with any strides, wrapping around.
void gemm(const Gemm&);
// The same, split over the pool where that pays.
void gemm_parallel(const Gemm&);

}  // namespace eager::core
