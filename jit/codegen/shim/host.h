// CUDA C++ for a host compiler: included before the source of a printed program.
//
// Covers what printed programs use and no more.  Kernels are plain functions, one fiber per
// thread (fibers.h); the prelude of the program brings the C++ twins of its PTX wrappers.
#pragma once
#include <math.h>
#include <string.h>

#include "fibers.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __syncthreads() shim::sync_block(__LINE__)

inline int __float_as_int(float x) {
  int y;
  memcpy(&y, &x, 4);
  return y;
}
inline float __int_as_float(int x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
inline long long __double_as_longlong(double x) {
  long long y;
  memcpy(&y, &x, 8);
  return y;
}
inline double __longlong_as_double(long long x) {
  double y;
  memcpy(&y, &x, 8);
  return y;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
