// The device runtime of a compiled program: what stands between its tile bodies and the machine.
//
// One persistent kernel: block w runs worker w's instructions of every epoch; all blocks must be
// resident, because a barrier over the whole grid stands between epochs.  The same text is
// compiled by NVRTC and, behind the host shim, by a C++ compiler; what only one of them can do
// is a small function with a twin.

#ifndef THREADS
#define THREADS 256  // per block; a power of two, at least 16
#endif

typedef unsigned short half_bits;  // a float16 or bfloat16 in memory

constexpr int kSharedBytes = 20 << 10;  // per block; users check that it is enough

#ifdef __CUDACC__

typedef int int32_t;
typedef unsigned uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

__device__ __forceinline__ unsigned char* shared_memory() {
  __shared__ __align__(16) unsigned char shared[kSharedBytes];
  return shared;
}

// Adds 1 after everything this block has written; returns the count before.
__device__ __forceinline__ uint64_t arrive(uint64_t* counter) {
  uint64_t before;
  asm volatile("atom.add.release.gpu.global.u64 %0, [%1], 1;"
               : "=l"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// Reads the counter before everything this block will read.
__device__ __forceinline__ uint64_t observe(const uint64_t* counter) {
  uint64_t count;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(counter) : "memory");
  return count;
}

__device__ __forceinline__ void back_off() { __nanosleep(32); }

__device__ __forceinline__ float from_float16(half_bits h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

__device__ __forceinline__ half_bits to_float16(float f) {
  half_bits h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

__device__ __forceinline__ half_bits to_bfloat16(float f) {
  half_bits h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

#else  // the C++ twins

inline unsigned char* shared_memory() { return shim::shared_memory(); }

inline uint64_t arrive(uint64_t* counter) {
  shim::wrote_atomic();
  return (*counter)++;
}

inline uint64_t observe(const uint64_t* counter) { return *counter; }

inline void back_off() { shim::pause(); }

inline float from_float16(half_bits h) {
  const unsigned sign = unsigned(h & 0x8000) << 16, exponent = (h >> 10) & 31, bits = h & 0x3FF;
  if (exponent == 31) return __int_as_float(int(sign | 0x7F800000 | (bits << 13)));
  if (exponent) return __int_as_float(int(sign | ((exponent + 112) << 23) | (bits << 13)));
  const float tiny = float(bits) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -tiny : tiny;
}

inline half_bits to_float16(float f) {
  const unsigned x = unsigned(__float_as_int(f)), magnitude = x & 0x7FFFFFFF;
  const half_bits sign = half_bits((x >> 16) & 0x8000);
  if (magnitude > 0x7F800000) return half_bits(0x7FFF);          // NaN
  if (magnitude >= 0x477FF000) return half_bits(sign | 0x7C00);  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: the float adder rounds to multiples of 2^-24
    const float shifted = __int_as_float(int(magnitude)) + 0.5f;
    return half_bits(sign | (unsigned(__float_as_int(shifted)) - 0x3F000000));
  }
  const unsigned even = (magnitude >> 13) & 1;
  return half_bits(sign | ((magnitude - 0x38000000 + 0xFFF + even) >> 13));
}

inline half_bits to_bfloat16(float f) {
  const unsigned x = unsigned(__float_as_int(f));
  if ((x & 0x7FFFFFFF) > 0x7F800000) return half_bits(0x7FFF);
  return half_bits((x + 0x7FFF + ((x >> 16) & 1)) >> 16);
}

#endif

__device__ __forceinline__ float from_bfloat16(half_bits h) {
  return __int_as_float(int(unsigned(h) << 16));
}

// Nobody passes before all blocks are here; what they wrote before is then visible to all.
// The counter only ever grows, so it needs no reset between barriers or launches.
__device__ inline void grid_barrier(uint64_t* arrived) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint64_t before = arrive(arrived);
    const uint64_t goal = before - before % gridDim.x + gridDim.x;
    while (observe(arrived) < goal) back_off();
  }
  __syncthreads();
}

// How the threads of a block share a reduction of `folded` points into each of `kept` results: in
// groups, one result per group.  Depends on the extents only, so every run adds in one order.
struct Group {
  unsigned size;     // threads in a group, a power of two
  unsigned results;  // groups in a block
  unsigned part;     // this thread's number in its group
  unsigned result;   // its group's number in the block
  unsigned stride;   // from a thread to its neighbour in the group

  // `along`: neighbouring points of a fold are neighbours in memory, else neighbouring results are.
  __device__ inline Group(unsigned kept, unsigned folded, bool along) : size(1) {
    const unsigned wanted = along ? 32 : 1;  // a warp reads whole lines
    while (size < THREADS && 2 * size <= folded && (size < wanted || kept < THREADS / size))
      size *= 2;
    results = THREADS / size;
    part = along ? threadIdx.x % size : threadIdx.x / results;
    result = along ? threadIdx.x / size : threadIdx.x % results;
    stride = along ? 1 : results;
  }

  // Folds one value per thread of the group.  All threads of the block must call it; the group's
  // part 0 gets the result.  Uses the first THREADS elements of shared memory.
  template <typename T, typename Combine>
  __device__ inline T fold(T value, Combine combine) const {
    static_assert(THREADS * sizeof(T) <= kSharedBytes, "one value per thread does not fit");
    if (size == 1) return value;
    T* const slots = reinterpret_cast<T*>(shared_memory());
    __syncthreads();  // the last fold's result has been read
    slots[threadIdx.x] = value;
    for (unsigned half = size / 2; half > 0; half /= 2) {
      __syncthreads();
      if (part < half)
        slots[threadIdx.x] = combine(slots[threadIdx.x], slots[threadIdx.x + half * stride]);
    }
    return slots[threadIdx.x];
  }
};

// A computed index in [0, size).  One outside is clamped, and flagged: the first buffer holds
// 1 + the number of the buffer that was indexed.
__device__ inline int64_t checked(int64_t index, int64_t size, void* const* buffers,
                                  int64_t buffer) {
  if (index >= 0 && index < size) return index;
  *static_cast<int64_t*>(buffers[0]) = 1 + buffer;
  return index < 0 || size == 0 ? 0 : size - 1;
}

// One operand of a product: element (i, j) is base[i * row + j * column].
template <typename T>
struct Matrix {
  T* base;
  int64_t row, column;
  __device__ inline T& at(int i, int j) const { return base[i * row + j * column]; }
  __device__ inline Matrix transposed() const { return {base, column, row}; }
};

// Matrix products: each block keeps a tile of the output in registers, kEach x kEach elements per
// thread, and walks along k with slabs of both operands in shared memory.
template <typename T>
struct Gemm {
  static constexpr int kEach = 4;
  static constexpr int kAcross = THREADS >= 256 ? 16 : THREADS >= 64 ? 8 : 4;
  static constexpr int kDown = THREADS / kAcross;
  static constexpr int kRows = kDown * kEach;
  static constexpr int kColumns = kAcross * kEach;
  static constexpr int kDepth = 16;
  static_assert(kDepth * (kRows + kColumns + 2) * sizeof(T) <= kSharedBytes, "slabs do not fit");

  // slab[d][i] = from(first + i, k0 + d), zero outside; i < kWidth, d < kDepth.  Neighbouring
  // threads read along the direction that is contiguous in memory.
  template <int kWidth>
  static __device__ inline void load(T* slab, Matrix<const T> from, int first, int limit, int k0,
                                     int k) {
    for (int e = int(threadIdx.x); e < kWidth * kDepth; e += THREADS) {
      const int i = from.row == 1 ? e % kWidth : e / kDepth;
      const int d = from.row == 1 ? e / kWidth : e % kDepth;
      const bool inside = first + i < limit && k0 + d < k;
      slab[d * (kWidth + 1) + i] = inside ? from.at(first + i, k0 + d) : T(0);
    }
  }

  // c(i, j) (+)= sum over d of a(i, d) * b(j, d), for the block's tile from (row0, column0) on.
  static __device__ inline void tile(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, int m,
                                     int n, int k, int row0, int column0, bool add) {
    T* slab_a = reinterpret_cast<T*>(shared_memory());
    T* slab_b = slab_a + kDepth * (kRows + 1);
    const int ty = int(threadIdx.x) / kAcross, tx = int(threadIdx.x) % kAcross;
    T sums[kEach][kEach] = {};
    for (int k0 = 0; k0 < k; k0 += kDepth) {
      __syncthreads();
      load<kRows>(slab_a, a, row0, m, k0, k);
      load<kColumns>(slab_b, b, column0, n, k0, k);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        T x[kEach], y[kEach];
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          x[e] = slab_a[d * (kRows + 1) + ty + e * kDown];
          y[e] = slab_b[d * (kColumns + 1) + tx + e * kAcross];
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i)
#pragma unroll
          for (int j = 0; j < kEach; ++j) sums[i][j] += x[i] * y[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int row = row0 + ty + i * kDown, column = column0 + tx + j * kAcross;
        if (row >= m || column >= n) continue;
        T& out = c.at(row, column);
        out = add ? out + sums[i][j] : sums[i][j];
      }
  }

  // ins = [m, n, k, batch, a: buffer, offset, row, column, batch, b: the same five,
  //        c: buffer, offset, row, batch, add]; offsets and strides in elements.
  static __device__ inline void run(void* const* buffers, const int64_t* ins) {
    const int m = int(ins[0]), n = int(ins[1]), k = int(ins[2]), batch = int(ins[3]);
    const int64_t *in_a = ins + 4, *in_b = ins + 9, *in_c = ins + 14;
    const Matrix<const T> a{static_cast<const T*>(buffers[in_a[0]]) + in_a[1], in_a[2], in_a[3]};
    const Matrix<const T> b{static_cast<const T*>(buffers[in_b[0]]) + in_b[1], in_b[2], in_b[3]};
    const Matrix<T> c{static_cast<T*>(buffers[in_c[0]]) + in_c[1], in_c[2], 1};
    for (int at = 0; at < batch; ++at)
      for (int row = 0; row < m; row += kRows)
        for (int column = 0; column < n; column += kColumns)
          tile({a.base + at * in_a[4], a.row, a.column},
               Matrix<const T>{b.base + at * in_b[4], b.row, b.column}.transposed(),
               {c.base + at * in_c[3], c.row, c.column}, m, n, k, row, column, in_c[4] != 0);
  }
};

// The built-in body: ins = [dtype (0 float32, 1 float64), Gemm::run's arguments].
__device__ inline void gemm_tile(void* const* buffers, const int64_t* ins) {
  if (ins[0] == 0)
    Gemm<float>::run(buffers, ins + 1);
  else
    Gemm<double>::run(buffers, ins + 1);
}

// Runs one instruction; printed after this prelude.
__device__ void execute(int64_t body, void* const* buffers, const int64_t* ins);

// The interpreter.  Worker w in epoch e runs words[starts[e * workers + w] .. starts[e * workers +
// w + 1]); each instruction is [length, body, arguments...].  With fewer blocks than workers, a
// block runs several.
extern "C" __global__ void __launch_bounds__(THREADS)
    program(void* const* buffers, const int64_t* words, const int64_t* starts, int workers,
            int epochs, uint64_t* arrived) {
  for (int epoch = 0; epoch < epochs; ++epoch) {
    if (epoch > 0) grid_barrier(arrived);
    for (int worker = int(blockIdx.x); worker < workers; worker += int(gridDim.x)) {
      const int64_t* range = starts + int64_t(epoch) * workers + worker;
      for (int64_t at = range[0]; at < range[1]; at += words[at]) {
        execute(words[at + 1], buffers, words + at + 2);
        __syncthreads();
      }
    }
  }
}
