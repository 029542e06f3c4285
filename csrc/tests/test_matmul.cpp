// Matrix products against a plain triple loop.
#include <cstdlib>

#include "core/gemm.h"
#include "core/pool.h"
#include "core/program.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

// Products of floats need BLAS, whose path the environment gives.
bool has_blas() {
  static const bool found = getenv("EAGER_BLAS") != nullptr;
  if (!found) std::printf("skipped: EAGER_BLAS is not set\n");
  return found;
}

TensorRef product(const TensorRef& a, const TensorRef& b) { return call("matmul", {a, b}); }

// Checks every element of y = a @ b, whose batch dimensions broadcast.
void check_product(const TensorRef& a, const TensorRef& b, double tolerance = 1e-4) {
  const TensorRef y = product(a, b);
  const int64_t m = a->shape[a->ndim() - 2], k = a->shape.back(), n = b->shape.back();
  CHECK(y->shape[y->ndim() - 2] == m && y->shape.back() == n);
  const size_t nd = y->ndim();
  for (int64_t i = 0; i < y->numel; ++i) {
    // The element's batch index in either operand.
    int64_t batch_a = 0, batch_b = 0, rest = i / (m * n), step_a = 1, step_b = 1;
    for (size_t d = nd - 2; d-- > 0;) {
      const int64_t at_d = rest % y->shape[d];
      rest /= y->shape[d];
      const auto add = [&](const TensorRef& t, int64_t& batch, int64_t& step) {
        if (nd - t->ndim() > d) return;
        const int64_t size = t->shape[d - (nd - t->ndim())];
        if (size > 1) batch += at_d * step;
        step *= size;
      };
      add(a, batch_a, step_a);
      add(b, batch_b, step_b);
    }
    double sum = 0;
    for (int64_t p = 0; p < k; ++p)
      sum += at(a, batch_a * m * k + i / n % m * k + p) * at(b, batch_b * k * n + p * n + i % n);
    CHECK(close(at(y, i), sum, tolerance));
  }
}

TensorRef strided(const TensorRef& t) {  // every second element of the last dimension
  Dims shape = t->shape, strides = t->strides;
  shape.back() /= 2;
  strides.back() *= 2;
  return Tensor::view(*t, shape, strides, t->offset);
}

}  // namespace

TEST(matmul_layouts) {
  if (!has_blas()) return;
  for (const Dims& s :
       {Dims{5, 7, 3}, Dims{1, 1, 1}, Dims{1, 9, 4}, Dims{6, 1, 2}, Dims{4, 5, 1}}) {
    const int64_t m = s[0], n = s[1], k = s[2];
    for (DType t : {DType::f32, DType::f64}) {
      const TensorRef a = cast(floats({m, k}), t), b = cast(floats({k, n}), t);
      const TensorRef at = transposed(cast(floats({k, m}), t));
      const TensorRef bt = transposed(cast(floats({n, k}), t));
      check_product(a, b);
      check_product(at, b);
      check_product(a, bt);
      check_product(at, bt);
      check_product(strided(cast(floats({m, 2 * k}), t)), b);
      check_product(a, strided(cast(floats({k, 2 * n}), t)));
    }
  }
  const TensorRef one = floats({1, 1});
  check_product(Tensor::view(*one, {3, 4}, {0, 0}, 0), floats({4, 2}));
}

TEST(matmul_batches) {
  if (!has_blas()) return;
  check_product(floats({3, 4, 5}), floats({3, 5, 2}));
  check_product(floats({3, 4, 5}), floats({5, 2}));
  check_product(floats({4, 5}), floats({3, 5, 2}));
  check_product(floats({2, 1, 4, 5}), floats({3, 5, 2}));
  check_product(transposed(floats({3, 5, 4})), floats({1, 5, 2}));
  check_product(floats({2, 3, 4, 5}), transposed(floats({2, 5})));
  CHECK((product(floats({0, 4, 5}), floats({5, 2}))->shape == Dims{0, 4, 2}));
  CHECK_FAILS(shape, product(floats({3, 4, 5}), floats({2, 5, 2})));
}

TEST(matmul_over_the_pool) {
  if (!has_blas()) return;
  const int before = num_threads();
  set_num_threads(2);
  check_product(floats({200, 130}), floats({130, 90}), 1e-3);
  check_product(floats({90, 150}), transposed(floats({210, 150})), 1e-3);
  check_product(floats({64, 20, 16}), floats({64, 16, 20}));
  set_num_threads(before);
}

TEST(matmul_dtypes) {
  const auto integers = [](const Dims& shape, DType t) {
    return cast(longs(shape, [](int64_t i) { return i % 11 - 5; }), t);
  };
  for (DType t : {DType::i8, DType::i16, DType::i32, DType::i64}) {
    check_product(integers({3, 4}, t), integers({4, 5}, t), 0);
    check_product(transposed(integers({4, 3}, t)), transposed(integers({5, 4}, t)), 0);
  }
  const TensorRef large = cast(longs({1, 2}, [](int64_t) { return 200; }), DType::u8);
  CHECK(at(product(large, transposed(large)), 0) == (2 * 200 * 200) % 256);
  check_product(integers({3, 300}, DType::i64), integers({300, 2}, DType::i64), 0);
  CHECK_FAILS(dtype, product(cast(floats({2, 2}), DType::b8), cast(floats({2, 2}), DType::b8)));
  if (!has_blas()) return;
  for (DType t : {DType::f16, DType::bf16}) {
    const TensorRef a = cast(floats({3, 8}), t), b = cast(floats({8, 2}), t);
    CHECK(product(a, b)->dtype == t);
    check_product(a, b, 1e-2);
  }
}

TEST(matmul_edges) {
  const TensorRef y = product(floats({3, 0}), floats({0, 2}));
  CHECK((y->shape == Dims{3, 2}));
  for (int64_t i = 0; i < 6; ++i) CHECK(at(y, i) == 0);
  CHECK(product(floats({0, 3}), floats({3, 2}))->numel == 0);
  CHECK_FAILS(shape, product(floats({3, 4}), floats({3, 4})));
  CHECK_FAILS(shape, product(floats({3}), floats({3, 4})));
  const TensorRef a = Tensor::empty({7, 3, 4}, DType::f32, Device::meta);
  const TensorRef b = Tensor::empty({4, 2}, DType::f32, Device::meta);
  CHECK((product(a, b)->shape == Dims{7, 3, 2}) && product(a, b)->device == Device::meta);
}

TEST(gemm_tile_body) {
  if (has_blas()) require_blas();
  const TensorRef a = floats({2, 4, 3}), b = floats({5, 3});  // b is used transposed
  const TensorRef c = floats({2, 4, 5}, [](int64_t) { return 1.0f; });
  void* buffers[] = {a->data(), b->data(), c->data()};
  const int64_t ins[] = {0, 4, 5, 3, 2, 0, 0, 3, 1, 12, 1, 0, 1, 3, 0, 2, 0, 5, 20, 1};
  gemm_tile(buffers, ins);
  const TensorRef bt = transposed(b);
  for (int64_t i = 0; i < 40; ++i) {
    double sum = 1;
    for (int64_t p = 0; p < 3; ++p) sum += at(a, i / 5 * 3 + p) * at(bt, p * 5 + i % 5);
    CHECK(close(at(c, i), sum));
  }
}
