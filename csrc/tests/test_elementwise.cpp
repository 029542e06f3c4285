#include <limits>

#include "core/kernels.h"
#include "core/lanes.h"
#include "core/pool.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

// Compares `out` with f of the operands, which broadcast to out's shape.
void check_binary(const TensorRef& out, const TensorRef& a, const TensorRef& b,
                  double (*f)(double, double)) {
  const auto element = [&](const TensorRef& t, int64_t flat) {
    Dims strides(out->ndim(), 0);
    const size_t lead = out->ndim() - t->ndim();
    for (size_t d = 0; d < t->ndim(); ++d) strides[lead + d] = t->shape[d] == 1 ? 0 : t->strides[d];
    return at(Tensor::view(*t, out->shape, strides, t->offset), flat);
  };
  for (int64_t i = 0; i < out->numel; ++i)
    CHECK(close(at(out, i), f(element(a, i), element(b, i))));
}

double plus(double a, double b) { return a + b; }
double minus(double a, double b) { return a - b; }

TensorRef sliced(const TensorRef& t, int64_t step) {  // every step-th element of the last dimension
  Dims shape(t->shape), strides(t->strides);
  shape.back() = (shape.back() + step - 1) / step;
  strides.back() *= step;
  return Tensor::view(*t, shape, strides, t->offset);
}

}  // namespace

TEST(elementwise_contiguous) {
  for (int64_t n : {0, 1, 3, 16, 17, 1000, 100001}) {
    const TensorRef a = floats({n}), b = floats({n}, [](int64_t i) { return float(i % 7); });
    check_binary(call("sub", {a, b}), a, b, minus);
  }
}

TEST(elementwise_broadcasts) {
  const Dims shapes[] = {{},        {1},       {7},       {5, 7},    {5, 1},       {1, 7},
                         {3, 5, 7}, {3, 1, 7}, {3, 1, 1}, {3, 5, 1}, {1, 1, 1, 7}, {2, 1, 5, 1}};
  for (const Dims& s : shapes) {
    for (const Dims& t : shapes) {
      const TensorRef a = floats(s), b = floats(t, [](int64_t i) { return float(i) * 0.5f; });
      const TensorRef out = call("sub", {a, b});
      CHECK(out->shape == broadcast_shapes("sub", s, t));
      check_binary(out, a, b, minus);
    }
  }
  const TensorRef wide = floats({20, 300}), row = floats({300}), column = floats({20, 1});
  check_binary(call("sub", {wide, row}), wide, row, minus);
  check_binary(call("sub", {column, wide}), column, wide, minus);
}

TEST(elementwise_strided) {
  const TensorRef a = floats({70, 90}), b = floats({90, 70});
  const TensorRef c = floats({70, 90}, [](int64_t i) { return float(i); });
  const TensorRef wide = floats({70, 270});
  check_binary(call("sub", {a, transposed(b)}), a, transposed(b), minus);
  check_binary(call("sub", {transposed(a), b}), transposed(a), b, minus);
  check_binary(call("sub", {transposed(a), transposed(c)}), transposed(a), transposed(c), minus);
  check_binary(call("sub", {a, sliced(wide, 3)}), a, sliced(wide, 3), minus);
  const TensorRef small = floats({40, 6});
  check_binary(call("sub", {sliced(small, 2), sliced(small, 2)}), sliced(small, 2),
               sliced(small, 2), minus);
  const TensorRef backwards = Tensor::view(*a, {90}, {-1}, 89);
  check_binary(call("sub", {backwards, floats({90})}), backwards, floats({90}), minus);
}

TEST(elementwise_converts) {
  const DType all[] = {DType::f32, DType::f64, DType::f16, DType::bf16, DType::i8,
                       DType::i16, DType::i32, DType::i64, DType::u8};
  const TensorRef values = floats({3, 41}, [](int64_t i) { return float(i % 11); });
  for (DType s : all) {
    for (DType t : all) {
      const TensorRef a = cast(values, s), b = cast(values, t);
      const TensorRef out = call("add", {a, b});
      CHECK(out->dtype == promote(s, false, false, t, false, false));
      check_binary(out, a, b, plus);
      check_binary(call("add", {transposed(a), transposed(b)}), transposed(a), transposed(b), plus);
    }
  }
  const TensorRef bytes = make<uint8_t>({3}, DType::u8, [](int64_t) { return 200; });
  CHECK(at(call("add", {bytes, bytes}), 0) == 144);  // modulo 256
}

TEST(elementwise_converts_half_precision) {
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {0.0f,  -0.0f,    1.0f,       65504.0f,   65520.0f,
                          1e-7f, 5.96e-8f, 2.9e-8f,    6.1e-5f,    6.0e-5f,
                          inf,   -inf,     1.0009765f, 1.0004883f, 3.14159f};
  const float expected[] = {
      0.0f,          -0.0f,         1.0f,       65504.0f,       inf,
      1.1920929e-7f, 5.9604645e-8f, 0.0f,       6.09755516e-5f, 6.00218773e-5f,
      inf,           -inf,          1.0009766f, 1.0f,           3.140625f};
  const int64_t n = 15;
  // Long enough for the vector loops, and a rest.
  const TensorRef x = floats({3 * n + 1}, [&](int64_t i) { return values[i % n]; });
  for (const Conversions* c : {&kBaselineConversions, &conversions()}) {
    const TensorRef h = Tensor::empty(x->shape, DType::f16);
    c->store[int(Lane::f32)][int(DType::f16)](x->data(), h->data(), 1, x->numel);
    const TensorRef y = Tensor::empty(x->shape, DType::f32);
    c->load[int(DType::f16)][int(Lane::f32)](h->data(), 1, y->data(), x->numel);
    for (int64_t i = 0; i < x->numel; ++i) {
      const float got = y->as<float>()[i], want = expected[i % n];
      CHECK(got == want && std::signbit(got) == std::signbit(want));
    }
  }
}

TEST(elementwise_python_numbers) {
  const TensorRef x = floats({5}), doubles = cast(x, DType::f64);
  const TensorRef tenth = Tensor::scalar(0.1);
  CHECK(call("add", {x, tenth})->dtype == DType::f32);
  CHECK(close(at(call("sub", {tenth, x}), 3), 0.1 - at(x, 3)));
  CHECK(at(call("add", {doubles, tenth}), 2) == at(doubles, 2) + 0.1);  // with all its digits
  const TensorRef ints = longs({4}, [](int64_t i) { return i; });
  CHECK(call("add", {ints, tenth})->dtype == DType::f32);
  CHECK(call("add", {ints, Tensor::scalar(int64_t(3))})->dtype == DType::i64);
  CHECK(call("add", {x, Tensor::scalar(true)})->dtype == DType::f32);
  CHECK(at(call("add", {x, Tensor::scalar(true)}), 1) == at(x, 1) + 1);
  CHECK(!call("add", {tenth, tenth})->weak);
}

TEST(elementwise_booleans) {
  const TensorRef a = floats({6}, [](int64_t i) { return float(i % 3); });
  const TensorRef b = floats({6}, [](int64_t i) { return float(i % 2); });
  const TensorRef less = call("lt", {b, a});
  CHECK(less->dtype == DType::b8 && at(less, 2) == 1 && at(less, 1) == 0);
  const TensorRef both = call("logical_and", {a, b});
  for (int64_t i = 0; i < 6; ++i) CHECK(at(both, i) == (at(a, i) != 0 && at(b, i) != 0));
  const TensorRef chosen = call("where", {less, a, Tensor::scalar(7.0)});
  for (int64_t i = 0; i < 6; ++i) CHECK(at(chosen, i) == (at(less, i) != 0 ? at(a, i) : 7));
  CHECK(call("add", {less, both})->dtype == DType::b8);
  CHECK_FAILS(dtype, call("where", {a, a, b}));
  CHECK_FAILS(dtype, call("bitwise_and", {a, b}));
}

TEST(elementwise_cast) {
  const TensorRef x = floats({4}, [](int64_t i) { return float(i) * 0.5f - 0.5f; });
  const auto to = [&](DType t) { return call("cast", {x}, Attrs().integer(int64_t(t))); };
  CHECK(at(to(DType::b8), 0) == 1 && at(to(DType::b8), 1) == 0 && at(to(DType::b8), 2) == 1);
  CHECK(at(to(DType::i32), 0) == 0 && at(to(DType::i32), 3) == 1);
  CHECK(at(to(DType::f64), 3) == 1.0);
}

TEST(elementwise_generators) {
  const TensorRef r = call(
      "arange_int", {},
      Attrs().integer(int64_t(1) << 60).integer(3).ints(Dims{50, 40}).integer(int64_t(DType::i64)));
  CHECK(r->shape == (Dims{50, 40}));
  for (int64_t i = 0; i < r->numel; ++i) CHECK(r->as<int64_t>()[i] == (int64_t(1) << 60) + 3 * i);
  const TensorRef f =
      call("full", {}, Attrs().floating(2.5).ints(Dims{}).integer(int64_t(DType::bf16)));
  CHECK(f->ndim() == 0 && f->dtype == DType::bf16 && at(f, 0) == 2.5);
  CHECK_FAILS(shape,
              call("full", {}, Attrs().floating(1).ints(Dims{-1}).integer(int64_t(DType::f32))));
}

TEST(elementwise_same_on_any_number_of_threads) {
  const int before = num_threads();
  const TensorRef a = floats({300, 500}), b = transposed(floats({500, 300}));
  set_num_threads(1);
  const TensorRef one = call("sub", {a, b});
  set_num_threads(3);
  const TensorRef three = call("sub", {a, b});
  set_num_threads(before);
  CHECK(!std::memcmp(one->data(), three->data(), size_t(one->numel) * 4));
}

TEST(elementwise_meta_only_infers) {
  const TensorRef a = Tensor::empty({4, 1}, DType::f16, Device::meta);
  const TensorRef b = Tensor::empty({3}, DType::f32, Device::meta);
  const TensorRef out = call("add", {a, b});
  CHECK(out->device == Device::meta && out->shape == (Dims{4, 3}) && out->dtype == DType::f32);
  CHECK(call("add", {a, Tensor::scalar(2.0)})->device == Device::meta);
  CHECK_FAILS(device, call("add", {a, floats({3})}));
}

TEST(elementwise_errors) {
  CHECK_FAILS(shape, call("add", {floats({2, 3}), floats({2})}));
  CHECK_FAILS(value, call("add", {floats({2})}));
}
