// Indexing, scans and positions of extremes.
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

Attrs dim(int64_t d) { return Attrs().integer(d); }
TensorRef positions(const Dims& shape, std::initializer_list<int64_t> values) {
  return longs(shape, [&](int64_t i) { return values.begin()[i]; });
}
bool equals(const TensorRef& t, std::initializer_list<double> values) {
  if (t->numel != int64_t(values.size())) return false;
  for (int64_t i = 0; i < t->numel; ++i)
    if (!close(at(t, i), values.begin()[i])) return false;
  return true;
}

}  // namespace

TEST(index_select_rows_and_columns) {
  const TensorRef x = floats({3, 2}, [](int64_t i) { return float(i); });
  CHECK(equals(call("index_select", {x, positions({4}, {2, 0, -1, 1})}, dim(0)),
               {4, 5, 0, 1, 4, 5, 2, 3}));
  CHECK(equals(call("index_select", {x, positions({2}, {1, -2})}, dim(1)), {1, 0, 3, 2, 5, 4}));
  CHECK(equals(call("index_select", {transposed(x), positions({1}, {2})}, dim(1)), {4, 5}));
  CHECK(call("index_select", {x, positions({0}, {})}, dim(0))->numel == 0);
  CHECK_FAILS(index, call("index_select", {x, positions({1}, {3})}, dim(0)));
  CHECK_FAILS(index, call("index_select", {x, positions({1}, {-4})}, dim(0)));
  CHECK_FAILS(dtype, call("index_select", {x, floats({1})}, dim(0)));
  CHECK_FAILS(index, call("index_select", {floats({0, 2}), positions({1}, {0})}, dim(0)));
  try {
    call("index_select", {x, positions({2}, {0, 7})}, dim(0));
  } catch (const Error& e) {
    const std::string text = e.what();
    CHECK(text.find("[-3, 3)") != std::string::npos && text.find("7") != std::string::npos);
  }
}

TEST(index_add_accumulates) {
  const TensorRef x = floats({2, 2}, [](int64_t) { return 1.0f; });
  const TensorRef src = floats({3, 2}, [](int64_t i) { return float(i); });
  CHECK(equals(call("index_add", {x, positions({3}, {0, 1, 0}), src}, dim(0)), {5, 7, 3, 4}));
  CHECK(equals(call("index_add", {x, positions({3}, {-1, 1, 0}), transposed(src)}, dim(1)),
               {5, 3, 6, 5}));
  const TensorRef flags = cast(floats({2}, [](int64_t i) { return float(i); }), DType::b8);
  CHECK(equals(call("index_add", {flags, positions({2}, {0, 0}), flags}, dim(0)), {1, 1}));
  CHECK_FAILS(shape, call("index_add", {x, positions({2}, {0, 1}), src}, dim(0)));
  // Wide enough to be split over workers.
  const TensorRef wide = floats({8, 40000}, [](int64_t i) { return float(i % 5); });
  const TensorRef sum = call("index_add",
                             {floats({2, 40000}, [](int64_t) { return 0.0f; }),
                              positions({8}, {0, 1, 0, 1, 0, 1, 0, 1}), wide},
                             dim(0));
  for (int64_t j : {0, 1, 39999}) {
    CHECK(at(sum, j) ==
          at(wide, j) + at(wide, 80000 + j) + at(wide, 160000 + j) + at(wide, 240000 + j));
  }
}

TEST(gather_and_scatter_add) {
  const TensorRef x = floats({2, 3}, [](int64_t i) { return float(i); });
  CHECK(equals(call("gather", {x, positions({2, 2}, {2, 0, -1, 1})}, dim(1)), {2, 0, 5, 4}));
  CHECK(equals(call("gather", {x, positions({1, 3}, {1, 0, 1})}, dim(0)), {3, 1, 5}));
  CHECK(equals(call("gather", {transposed(x), positions({1, 2}, {2, 0})}, dim(0)), {2, 3}));
  CHECK_FAILS(shape, call("gather", {x, positions({3, 1}, {0, 0, 0})}, dim(1)));
  CHECK_FAILS(index, call("gather", {x, positions({1, 1}, {3})}, dim(1)));
  const TensorRef zero = floats({2, 3}, [](int64_t) { return 0.0f; });
  const TensorRef ones = floats({2, 2}, [](int64_t i) { return float(i + 1); });
  CHECK(equals(call("scatter_add", {zero, positions({2, 2}, {0, 0, 2, -1}), ones}, dim(1)),
               {3, 0, 0, 0, 0, 7}));
  CHECK(equals(call("scatter_add", {zero, positions({2, 2}, {1, 0, 1, 1}), ones}, dim(0)),
               {0, 2, 0, 4, 4, 0}));
  CHECK_FAILS(shape, call("scatter_add", {zero, positions({3, 1}, {0, 0, 0}), ones}, dim(0)));
  const TensorRef scalar = floats({}, [](int64_t) { return 3.0f; });
  CHECK(equals(call("gather", {scalar, positions({}, {0})}, dim(0)), {3}));
}

TEST(nonzero_positions) {
  const TensorRef x = floats({2, 3}, [](int64_t i) { return i % 2 ? NAN : 0.0f; });
  CHECK(equals(call("nonzero", {x}), {0, 1, 1, 0, 1, 2}));
  CHECK((call("nonzero", {floats({0})})->shape == Dims{0, 1}));
}

TEST(cumsum_along_each_dimension) {
  const TensorRef x = floats({2, 3}, [](int64_t i) { return float(i); });
  CHECK(equals(call("cumsum", {x}, dim(1)), {0, 1, 3, 3, 7, 12}));
  CHECK(equals(call("cumsum", {x}, dim(0)), {0, 1, 2, 3, 5, 7}));
  CHECK(equals(call("cumsum", {transposed(x)}, dim(0)), {0, 3, 1, 7, 3, 12}));
  CHECK(call("cumsum", {cast(x, DType::b8)}, dim(0))->dtype == DType::i64);
  CHECK_FAILS(index, call("cumsum", {x}, dim(2)));
  const TensorRef wide = floats({3, 70}, [](int64_t) { return 1.0f; });
  CHECK(at(call("cumsum", {wide}, dim(0)), 209) == 3);
}

TEST(argmax_takes_the_first_and_nan) {
  const float values[] = {1, 3, 3, NAN, 2, NAN, -1, -1, -2};
  const TensorRef x = floats({3, 3}, [&](int64_t i) { return values[i]; });
  CHECK(equals(call("argmax", {x}, dim(1).integer(0)), {1, 0, 0}));
  CHECK(equals(call("argmin", {x}, dim(1).integer(0)), {0, 0, 2}));
  const TensorRef kept = call("argmax", {x}, dim(0).integer(1));
  CHECK((kept->shape == Dims{1, 3}) && equals(kept, {1, 0, 1}));
  CHECK(kept->dtype == DType::i64);
  CHECK_FAILS(index, call("argmax", {floats({2, 0})}, dim(1).integer(0)));
  CHECK(call("argmax", {floats({0, 2})}, dim(1).integer(0))->numel == 0);
}
