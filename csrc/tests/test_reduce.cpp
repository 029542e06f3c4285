#include <limits>

#include "core/pool.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

TensorRef fold(const char* name, const TensorRef& x, const Dims& dims, bool keepdim = false) {
  return call(name, {x}, Attrs().ints(dims).integer(keepdim));
}

// Sums by definition.
std::vector<double> sums(const TensorRef& x, const Dims& dims) {
  std::vector<bool> reduced(x->ndim(), false);
  for (int64_t d : dims) reduced[size_t(d)] = true;
  int64_t outputs = 1;
  for (size_t d = 0; d < x->ndim(); ++d)
    if (!reduced[d]) outputs *= x->shape[d];
  std::vector<double> result(size_t(outputs), 0.0);
  for (int64_t i = 0; i < x->numel; ++i) {
    int64_t rest = i, to = 0, step = 1;
    for (size_t d = x->ndim(); d-- > 0;) {
      const int64_t c = rest % x->shape[d];
      rest /= x->shape[d];
      if (reduced[d]) continue;
      to += c * step;
      step *= x->shape[d];
    }
    result[size_t(to)] += at(x, i);
  }
  return result;
}

void check_sum(const TensorRef& x, const Dims& dims) {
  const TensorRef out = fold("sum", x, dims);
  const std::vector<double> expected = sums(x, dims);
  CHECK(out->numel == int64_t(expected.size()));
  for (int64_t i = 0; i < out->numel; ++i) CHECK(close(at(out, i), expected[size_t(i)]));
}

}  // namespace

TEST(reduce_every_set_of_dimensions) {
  for (const Dims& shape : {Dims{3, 4, 5}, Dims{20, 3, 33}, Dims{2, 130, 5}, Dims{1, 40, 1}}) {
    const TensorRef x = floats(shape);
    const TensorRef permuted =
        Tensor::view(*x, {shape[2], shape[0], shape[1]}, {1, shape[1] * shape[2], shape[2]}, 0);
    for (const TensorRef& t : {x, permuted, cast(x, DType::f64), cast(x, DType::i32)}) {
      for (const Dims& dims :
           {Dims{0}, Dims{1}, Dims{2}, Dims{0, 1}, Dims{0, 2}, Dims{1, 2}, Dims{0, 1, 2}, Dims{}})
        check_sum(t, dims);
    }
  }
}

TEST(reduce_long) {
  for (const Dims& shape : {Dims{7, 10000}, Dims{10000, 7}, Dims{700, 700}, Dims{200000, 1}}) {
    const TensorRef x = floats(shape);
    for (const Dims& dims : {Dims{0}, Dims{1}, Dims{0, 1}}) {
      check_sum(x, dims);
      check_sum(transposed(x), dims);
    }
  }
}

TEST(reduce_shapes_and_dtypes) {
  const TensorRef x = floats({2, 3, 4});
  CHECK(fold("sum", x, {1})->shape == (Dims{2, 4}));
  CHECK(fold("sum", x, {1}, true)->shape == (Dims{2, 1, 4}));
  CHECK(fold("sum", x, {0, 1, 2})->shape == (Dims{}));
  CHECK(fold("sum", cast(x, DType::u8), {0})->dtype == DType::i64);
  CHECK(fold("sum", cast(x, DType::bf16), {0})->dtype == DType::bf16);
  CHECK(fold("amax", cast(x, DType::i16), {0})->dtype == DType::i16);
  const TensorRef any = fold("any", x, {0, 1, 2});
  CHECK(any->dtype == DType::b8 && at(any, 0) == 1);
  CHECK(at(fold("all", x, {0, 1, 2}), 0) == 1);
  CHECK(at(fold("prod", floats({5}, [](int64_t i) { return float(i + 1); }), {0}), 0) == 120);
  CHECK_FAILS(index, fold("sum", x, {3}));
  CHECK_FAILS(index, fold("sum", x, {1, 1}));
}

TEST(reduce_extremes) {
  const TensorRef x = floats({3, 50}, [](int64_t i) { return float((i * 37) % 101); });
  double high = 0, low = 1e9;
  for (int64_t i = 0; i < 150; ++i) high = std::max(high, at(x, i)), low = std::min(low, at(x, i));
  CHECK(at(fold("amax", x, {0, 1}), 0) == high && at(fold("amin", x, {0, 1}), 0) == low);
  x->as<float>()[60] = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(at(fold("amax", x, {1}), 1)) && !std::isnan(at(fold("amax", x, {1}), 0)));
}

TEST(reduce_nothing) {
  const TensorRef x = floats({0, 3});
  const TensorRef zero = fold("sum", x, {0});
  CHECK(zero->shape == (Dims{3}) && at(zero, 0) == 0 && at(zero, 2) == 0);
  CHECK(at(fold("prod", x, {0}), 1) == 1);
  CHECK(at(fold("all", x, {0}), 1) == 1 && at(fold("any", x, {0}), 1) == 0);
  CHECK(fold("amax", x, {1})->numel == 0);
  CHECK_FAILS(shape, fold("amax", x, {0}));
  CHECK_FAILS(shape, fold("amin", longs({0}, nullptr), {0}));
}

TEST(reduce_is_accurate) {
  const int64_t n = 1 << 22;
  const TensorRef x = floats({n}, [](int64_t) { return 0.1f; });
  CHECK(close(at(fold("sum", x, {0}), 0), double(0.1f) * double(n), 1e-6));
  const TensorRef columns = Tensor::view(*x, {n / 4, 4}, {4, 1}, 0);
  CHECK(close(at(fold("sum", columns, {0}), 3), double(0.1f) * double(n / 4), 1e-6));
  const TensorRef halves = cast(floats({4096}, [](int64_t) { return 1.0f; }), DType::f16);
  CHECK(at(fold("sum", halves, {0}), 0) == 4096);
}

TEST(reduce_same_on_any_number_of_threads) {
  const int before = num_threads();
  for (const Dims& shape : {Dims{900, 700}, Dims{300000, 3}, Dims{3, 300000}}) {
    const TensorRef x = floats(shape, [](int64_t i) { return std::sin(float(i)); });
    for (const Dims& dims : {Dims{0}, Dims{1}, Dims{0, 1}}) {
      set_num_threads(1);
      const TensorRef one = fold("sum", x, dims);
      set_num_threads(3);
      const TensorRef three = fold("sum", x, dims);
      CHECK(!std::memcmp(one->data(), three->data(), size_t(one->numel) * 4));
    }
  }
  set_num_threads(before);
}

TEST(reduce_meta_only_infers) {
  const TensorRef out = fold("sum", Tensor::empty({4, 5}, DType::i8, Device::meta), {0});
  CHECK(out->device == Device::meta && out->shape == (Dims{5}) && out->dtype == DType::i64);
}
