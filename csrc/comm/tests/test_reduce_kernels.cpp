// Arithmetic of reductions against one element at a time in plain C++.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "comm/error.h"
#include "comm/reduce_kernels.h"
#include "numeric/half.h"
#include "testing/test.h"

using namespace eager::comm;

namespace {

// Values of every type go through double (through int64_t for integers: double has 53 bits).
double read_float(DType t, const std::byte* at) {
  switch (t) {
    case DType::f32: {
      float x;
      std::memcpy(&x, at, 4);
      return x;
    }
    case DType::f64: {
      double x;
      std::memcpy(&x, at, 8);
      return x;
    }
    case DType::f16: {
      eager::numeric::f16 x;
      std::memcpy(&x, at, 2);
      return eager::numeric::to_float(x);
    }
    default: {
      eager::numeric::bf16 x;
      std::memcpy(&x, at, 2);
      return eager::numeric::to_float(x);
    }
  }
}

void write_float(DType t, std::byte* at, double value) {
  const auto f = float(value);
  switch (t) {
    case DType::f32:
      std::memcpy(at, &f, 4);
      break;
    case DType::f64:
      std::memcpy(at, &value, 8);
      break;
    case DType::f16: {
      const eager::numeric::f16 x = eager::numeric::to_f16(f);
      std::memcpy(at, &x, 2);
      break;
    }
    default: {
      const eager::numeric::bf16 x = eager::numeric::to_bf16(f);
      std::memcpy(at, &x, 2);
    }
  }
}

template <class T>
T combine(ReduceOp op, T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (op == ReduceOp::min || op == ReduceOp::max) {
      if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
    }
  }
  switch (op) {
    case ReduceOp::min:
      return a < b ? a : b;
    case ReduceOp::max:
      return a > b ? a : b;
    case ReduceOp::prod:
      return T(a * b);
    default:
      return T(a + b);
  }
}

// Rows of `count` elements, `n` of them, each at an address of any alignment.
struct Rows {
  Rows(int n, size_t count, DType t, size_t shift) {
    for (int k = 0; k < n; ++k) {
      memory.emplace_back(count * item_size(t) + shift + 1);
      at.push_back(memory.back().data() + shift);
    }
  }
  std::vector<const void*> inputs() const { return {at.begin(), at.end()}; }
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> at;
};

template <class A>  // the type that a float type is combined in
void check_floats(DType t, ReduceOp op, int n, int m, size_t count, size_t shift, int divisor) {
  Rows in(n, count, t, shift), out(m, count, t, shift);
  std::mt19937 random(uint32_t(count) + uint32_t(n));
  std::uniform_real_distribution<float> value(-2, 2);
  for (std::byte* row : in.at) {
    for (size_t i = 0; i < count; ++i) {
      write_float(t, row + i * item_size(t),
                  i % 97 == 5   ? NAN
                  : i % 89 == 3 ? 1e30
                                : value(random));
    }
  }
  std::vector<void*> outs(out.at.begin(), out.at.end());
  reduce(t, op, in.inputs().data(), n, outs.data(), m, count, divisor);
  for (size_t i = 0; i < count; ++i) {
    const size_t at = i * item_size(t);
    A want = A(read_float(t, in.at[0] + at));
    for (int k = 1; k < n; ++k)
      want = combine<A>(op, want, A(read_float(t, in.at[size_t(k)] + at)));
    if (op == ReduceOp::avg && divisor) want /= A(divisor);
    std::byte bits[8];
    write_float(t, bits, want);
    for (const std::byte* row : out.at) {
      const bool both_nan = std::isnan(want) && std::isnan(read_float(t, row + at));
      CHECK(both_nan || std::memcmp(row + at, bits, item_size(t)) == 0);
    }
  }
}

template <class T>
void check_integers(DType t, ReduceOp op, int n, int m, size_t count, size_t shift) {
  Rows in(n, count, t, shift), out(m, count, t, shift);
  std::mt19937_64 random(count + size_t(n));
  for (std::byte* row : in.at) {
    for (size_t i = 0; i < count; ++i) {
      T x = T(random());
      if (t == DType::boolean) x = T(x & 1);
      std::memcpy(row + i * sizeof(T), &x, sizeof(T));
    }
  }
  std::vector<void*> outs(out.at.begin(), out.at.end());
  reduce(t, op, in.inputs().data(), n, outs.data(), m, count, 0);
  using U = std::make_unsigned_t<T>;
  for (size_t i = 0; i < count; ++i) {
    T want = 0;
    for (int k = 0; k < n; ++k) {
      T x;
      std::memcpy(&x, in.at[size_t(k)] + i * sizeof(T), sizeof(T));
      if (k == 0) {
        want = x;
      } else if (op == ReduceOp::sum) {
        want = t == DType::boolean ? T(want | x) : T(uint64_t(U(want)) + uint64_t(U(x)));
      } else if (op == ReduceOp::prod) {
        want = T(uint64_t(U(want)) * uint64_t(U(x)));
      } else {
        want = combine<T>(op, want, x);
      }
    }
    for (const std::byte* row : out.at) {
      CHECK(std::memcmp(row + i * sizeof(T), &want, sizeof(T)) == 0);
    }
  }
}

constexpr ReduceOp kAll[] = {ReduceOp::sum, ReduceOp::avg, ReduceOp::min, ReduceOp::max,
                             ReduceOp::prod};

template <class F>
void for_shapes(const F& f) {
  for (const int n : {1, 2, 3, 5}) {
    for (const int m : {1, 2, 3}) {
      for (const size_t count : {0, 1, 7, 64, 1031, 5000})
        f(n, m, size_t(count), size_t(count % 3));
    }
  }
}

}  // namespace

TEST(reduce_floats) {
  for (const ReduceOp op : kAll) {
    for_shapes([&](int n, int m, size_t count, size_t shift) {
      for (const int divisor : {0, n}) {
        check_floats<float>(DType::f32, op, n, m, count, shift, divisor);
        check_floats<double>(DType::f64, op, n, m, count, shift, divisor);
        check_floats<float>(DType::f16, op, n, m, count, shift, divisor);
        check_floats<float>(DType::bf16, op, n, m, count, shift, divisor);
      }
    });
  }
}

TEST(reduce_integers) {
  for (const ReduceOp op : kAll) {
    if (op == ReduceOp::avg) continue;
    for_shapes([&](int n, int m, size_t count, size_t shift) {
      check_integers<int8_t>(DType::i8, op, n, m, count, shift);
      check_integers<uint8_t>(DType::u8, op, n, m, count, shift);
      check_integers<int16_t>(DType::i16, op, n, m, count, shift);
      check_integers<int32_t>(DType::i32, op, n, m, count, shift);
      check_integers<int64_t>(DType::i64, op, n, m, count, shift);
      check_integers<uint8_t>(DType::boolean, op, n, m, count, shift);
    });
  }
}

TEST(reduce_in_place_with_several_outputs) {
  std::vector<float> a(1000), b(1000), c(1000);
  for (size_t i = 0; i < 1000; ++i) {
    a[i] = float(i);
    b[i] = float(2 * i);
    c[i] = 1;
  }
  const void* in[3] = {a.data(), b.data(), c.data()};
  void* out[3] = {a.data(), b.data(), c.data()};
  reduce(DType::f32, ReduceOp::sum, in, 3, out, 3, 1000, 0);
  for (size_t i = 0; i < 1000; ++i) {
    CHECK(a[i] == float(3 * i + 1) && b[i] == a[i] && c[i] == a[i]);
  }
}

TEST(reduce_rounds_halves_once) {
  // 2048 + 1 + 1 is 2050 in float32; rounding to float16 after each addition stays at 2048.
  const eager::numeric::f16 big = eager::numeric::to_f16(2048), one = eager::numeric::to_f16(1);
  const void* in[3] = {&big, &one, &one};
  eager::numeric::f16 result{};
  void* out = &result;
  reduce(DType::f16, ReduceOp::sum, in, 3, &out, 1, 1, 0);
  CHECK(eager::numeric::to_float(result) == 2050);
}

TEST(reduce_refuses_averages_of_integers) {
  for (const DType t : {DType::i8, DType::u8, DType::i16, DType::i32, DType::i64, DType::boolean}) {
    bool thrown = false;
    try {
      check_reduction("all_reduce", t, ReduceOp::avg);
    } catch (const Error& e) {
      thrown = e.kind == ErrorKind::invalid;
    }
    CHECK(thrown);
  }
  check_reduction("all_reduce", DType::bf16, ReduceOp::avg);
}
