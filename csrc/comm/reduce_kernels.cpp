#include "reduce_kernels.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"
#include "numeric/half.h"

#define EAGER_INLINE inline __attribute__((always_inline))

namespace eager::comm {
namespace {

using numeric::bf16;
using numeric::f16;

// How an element is kept in memory and in which type it is combined.
template <class S, class A>
struct Plain {
  using Stored = S;
  using Value = A;
  static EAGER_INLINE A load(S x) { return A(x); }
  static EAGER_INLINE S store(A x) { return S(x); }
};
struct Half {
  using Stored = uint16_t;
  using Value = float;
  static EAGER_INLINE float load(uint16_t x) { return numeric::to_float(f16{x}); }
  static EAGER_INLINE uint16_t store(float x) {
    // As numeric::to_f16, without branches, so that the compiler makes vectors of it.
    const uint32_t u = numeric::detail::float_bits(x);
    const uint32_t sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    const uint32_t tiny =
        numeric::detail::float_bits(numeric::detail::bits_float(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t h = magnitude < 0x38800000 ? tiny : normal;
    h = magnitude >= 0x477ff000 ? 0x7c00 : h;
    h = magnitude > 0x7f800000 ? 0x7e00 : h;
    return uint16_t(sign | h);
  }
};
struct Brain {
  using Stored = uint16_t;
  using Value = float;
  static EAGER_INLINE float load(uint16_t x) { return numeric::to_float(bf16{x}); }
  static EAGER_INLINE uint16_t store(float x) { return numeric::to_bf16(x).bits; }
};
struct Bool {
  using Stored = uint8_t;
  using Value = uint8_t;
  static EAGER_INLINE uint8_t load(uint8_t x) { return x != 0; }
  static EAGER_INLINE uint8_t store(uint8_t x) { return x; }
};

// The type in which integers are added and multiplied: overflow is defined there.
template <class A>
struct Unsigned {
  using Type = A;
};
template <>
struct Unsigned<int8_t> {
  using Type = uint8_t;
};
template <>
struct Unsigned<int16_t> {
  using Type = uint32_t;  // uint16_t would be promoted to int, whose product can overflow
};
template <>
struct Unsigned<int32_t> {
  using Type = uint32_t;
};
template <>
struct Unsigned<int64_t> {
  using Type = uint64_t;
};

struct Sum {
  template <class A>
  static EAGER_INLINE A of(A a, A b) {
    using U = typename Unsigned<A>::Type;
    return A(U(a) + U(b));
  }
};
struct Prod {
  template <class A>
  static EAGER_INLINE A of(A a, A b) {
    using U = typename Unsigned<A>::Type;
    return A(U(a) * U(b));
  }
};
struct Min {
  template <class A>
  static EAGER_INLINE A of(A a, A b) {
    return (a < b) | (a != a) ? a : b;
  }
};
struct Max {
  template <class A>
  static EAGER_INLINE A of(A a, A b) {
    return (a > b) | (a != a) ? a : b;
  }
};

template <class A>
EAGER_INLINE A divide(A x, int) {
  return x;
}
EAGER_INLINE float divide(float x, int by) { return x / float(by); }
EAGER_INLINE double divide(double x, int by) { return x / double(by); }

struct Job {
  const void* const* in;
  int n;
  void* const* out;
  int m;
  size_t count;
  int divisor;  // 0: do not divide
};

// Two inputs and one or two outputs need no accumulator.
template <class E, class Op, bool kDivide>
EAGER_INLINE void pair(const Job& job) {
  using S [[gnu::aligned(1), gnu::may_alias]] = typename E::Stored;
  const S* a = static_cast<const S*>(job.in[0]);
  const S* b = static_cast<const S*>(job.in[1]);
  S* x = static_cast<S*>(job.out[0]);
  const size_t count = job.count;
  const int by = job.divisor;
  if (job.m == 1) {
#pragma GCC ivdep
    for (size_t i = 0; i < count; ++i) {
      auto v = Op::of(E::load(a[i]), E::load(b[i]));
      if (kDivide) v = divide(v, by);
      x[i] = E::store(v);
    }
    return;
  }
  S* y = static_cast<S*>(job.out[1]);
#pragma GCC ivdep
  for (size_t i = 0; i < count; ++i) {
    auto v = Op::of(E::load(a[i]), E::load(b[i]));
    if (kDivide) v = divide(v, by);
    const typename E::Stored s = E::store(v);
    x[i] = s;
    y[i] = s;
  }
}

// Any numbers: blocks that stay in the first-level cache.
template <class E, class Op, bool kDivide>
EAGER_INLINE void many(const Job& job) {
  using S [[gnu::aligned(1), gnu::may_alias]] = typename E::Stored;
  using A = typename E::Value;
  constexpr size_t kBlock = 4096 / sizeof(A);
  alignas(64) A sum[kBlock];
  for (size_t begin = 0; begin < job.count; begin += kBlock) {
    const size_t size = job.count - begin < kBlock ? job.count - begin : kBlock;
    const S* first = static_cast<const S*>(job.in[0]) + begin;
#pragma GCC ivdep
    for (size_t i = 0; i < size; ++i) sum[i] = E::load(first[i]);
    for (int k = 1; k < job.n; ++k) {
      asm volatile("" ::: "memory");  // or GCC interchanges the loops and cannot vectorise
      const S* next = static_cast<const S*>(job.in[k]) + begin;
#pragma GCC ivdep
      for (size_t i = 0; i < size; ++i) sum[i] = Op::of(sum[i], A(E::load(next[i])));
    }
    if (kDivide) {
      for (size_t i = 0; i < size; ++i) sum[i] = divide(sum[i], job.divisor);
    }
    S* x = static_cast<S*>(job.out[0]) + begin;
#pragma GCC ivdep
    for (size_t i = 0; i < size; ++i) x[i] = E::store(sum[i]);
    for (int j = 1; j < job.m; ++j) {
      std::memcpy(static_cast<S*>(job.out[j]) + begin, x, size * sizeof(S));
    }
  }
}

template <class E, class Op, bool kDivide>
EAGER_INLINE void loops(const Job& job) {
  if (job.n == 2 && job.m <= 2) {
    pair<E, Op, kDivide>(job);
  } else {
    many<E, Op, kDivide>(job);
  }
}

// The same loops for each instruction set; the processor is asked once.
template <class E, class Op, bool kDivide>
void baseline(const Job& job) {
  loops<E, Op, kDivide>(job);
}
#if defined(__x86_64__)
template <class E, class Op, bool kDivide>
__attribute__((target("avx2,f16c"))) void avx2(const Job& job) {
  loops<E, Op, kDivide>(job);
}
#if defined(__clang__)
#define EAGER_WIDE "avx512f,avx512bw,avx512dq,avx512vl,f16c"
#else
#define EAGER_WIDE "avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512"
#endif
template <class E, class Op, bool kDivide>
__attribute__((target(EAGER_WIDE))) void avx512(const Job& job) {
  loops<E, Op, kDivide>(job);
}
int level() {
  static const int found = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? 2 : 1;
  }();
  return found;
}
#endif

template <class E, class Op, bool kDivide = false>
void run(const Job& job) {
#if defined(__x86_64__)
  if (level() == 2) return avx512<E, Op, kDivide>(job);
  if (level() == 1) return avx2<E, Op, kDivide>(job);
#endif
  baseline<E, Op, kDivide>(job);
}

template <class E>
void by_op(ReduceOp op, const Job& job) {
  switch (op) {
    case ReduceOp::avg:
      if constexpr (std::is_floating_point_v<typename E::Value>) {
        if (job.divisor) return run<E, Sum, true>(job);
      }
      [[fallthrough]];
    case ReduceOp::sum:
      return run<E, Sum>(job);
    case ReduceOp::min:
      return run<E, Min>(job);
    case ReduceOp::max:
      return run<E, Max>(job);
    case ReduceOp::prod:
      return run<E, Prod>(job);
  }
}

}  // namespace

void check_reduction(const char* op_name, DType t, ReduceOp op) {
  const bool floating = t == DType::f32 || t == DType::f64 || t == DType::f16 || t == DType::bf16;
  if (op == ReduceOp::avg && !floating) {
    fail(ErrorKind::invalid, op_name, "no average of this element type",
         "float16, bfloat16, float32 or float64 for avg", name(t),
         "sum, and divide where the fraction can be kept");
  }
}

void reduce(DType t, ReduceOp op, const void* const* in, int n, void* const* out, int m,
            size_t count, int divisor) {
  if (count == 0) return;
  if (op != ReduceOp::avg) divisor = 0;
  const Job job{in, n, out, m, count, divisor};
  switch (t) {
    case DType::f32:
      return by_op<Plain<float, float>>(op, job);
    case DType::f64:
      return by_op<Plain<double, double>>(op, job);
    case DType::f16:
      return by_op<Half>(op, job);
    case DType::bf16:
      return by_op<Brain>(op, job);
    case DType::i8:
      return by_op<Plain<int8_t, int8_t>>(op, job);
    case DType::u8:
      return by_op<Plain<uint8_t, uint8_t>>(op, job);
    case DType::i16:
      return by_op<Plain<int16_t, int16_t>>(op, job);
    case DType::i32:
      return by_op<Plain<int32_t, int32_t>>(op, job);
    case DType::i64:
      return by_op<Plain<int64_t, int64_t>>(op, job);
    case DType::boolean:
      // or and and of 0 and 1
      if (op == ReduceOp::sum) op = ReduceOp::max;
      if (op == ReduceOp::prod) op = ReduceOp::min;
      return op == ReduceOp::max ? run<Bool, Max>(job) : run<Bool, Min>(job);
  }
}

}  // namespace eager::comm
