// Views, copies between layouts, and ops that piece tensors together.
#include "core/kernels.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

Attrs ints(const Dims& v) { return Attrs().ints(v); }
Attrs region(const Dims& starts, const Dims& sizes, const Dims& steps) {
  return Attrs().ints(starts).ints(sizes).ints(steps);
}
TensorRef meta(const Dims& shape) { return Tensor::empty(shape, DType::f32, Device::meta); }

// y holds the same values as x in row-major order.
bool same_values(const TensorRef& x, const TensorRef& y) {
  if (x->numel != y->numel) return false;
  for (int64_t i = 0; i < x->numel; ++i)
    if (at(x, i) != at(y, i)) return false;
  return true;
}

}  // namespace

TEST(reshape_is_a_view_where_it_can_be) {
  const TensorRef x = floats({4, 6});
  const TensorRef y = call("reshape", {x}, ints({2, 2, 3, 2}));
  CHECK(y->storage == x->storage && y->is_view && y->contiguous);
  CHECK(same_values(x, y));
  // A transposed tensor can still be split, and its untouched dimensions merged.
  const TensorRef t = transposed(x);
  const TensorRef split = call("reshape", {t}, ints({3, 2, 1, 4}));
  CHECK(split->storage == x->storage && same_values(t, split));
  const TensorRef flat = call("reshape", {t}, ints({24}));
  CHECK(!(flat->storage == x->storage) && flat->contiguous && same_values(t, flat));
  CHECK(call("reshape", {floats({0, 3})}, ints({3, 0, 5}))->numel == 0);
  CHECK(call("reshape", {floats({1})}, ints({}))->ndim() == 0);
  CHECK_FAILS(shape, call("reshape", {x}, ints({5, 5})));
  CHECK_FAILS(shape, call("reshape", {x}, ints({-4, -6})));
  CHECK_FAILS(shape, call("reshape", {x}, ints({int64_t(1) << 40, int64_t(1) << 40})));
}

TEST(permute_and_expand) {
  const TensorRef x = floats({2, 3, 4});
  const TensorRef y = call("permute", {x}, ints({2, 0, 1}));
  CHECK((y->shape == Dims{4, 2, 3}) && y->storage == x->storage);
  CHECK(at(y, 7) == at(x, 5));  // [1, 0, 1] is [0, 1, 1]
  CHECK_FAILS(value, call("permute", {x}, ints({0, 0, 1})));
  CHECK_FAILS(shape, call("permute", {x}, ints({0, 1})));
  CHECK_FAILS(index, call("permute", {x}, ints({0, 1, 3})));

  const TensorRef row = floats({1, 3});
  const TensorRef e = call("expand", {row}, ints({2, 4, 3}));
  CHECK(e->numel == 24 && at(e, 22) == at(row, 1));
  CHECK_FAILS(shape, call("expand", {row}, ints({2, 4})));
  CHECK_FAILS(shape, call("expand", {row}, ints({3})));
}

TEST(slice_and_split) {
  const TensorRef x = floats({5, 6});
  const TensorRef y = call("slice", {x}, region({1, 2}, {2, 1}, {3, 1}).ints(Dims{1}));
  CHECK((y->shape == Dims{2}) && at(y, 0) == at(x, 8) && at(y, 1) == at(x, 26));
  CHECK(call("slice", {x}, region({5, 0}, {0, 6}, {1, 1}).ints(Dims{}))->numel == 0);
  CHECK_FAILS(index, call("slice", {x}, region({4, 0}, {2, 6}, {1, 1}).ints(Dims{})));
  CHECK_FAILS(value, call("slice", {x}, region({0, 0}, {2, 6}, {0, 1}).ints(Dims{})));
  CHECK_FAILS(shape, call("slice", {x}, region({0, 0}, {2, 6}, {1, 1}).ints(Dims{0})));

  const Tensors pieces = dispatch(named("split"), {x}, ints({1, 0, 5}).integer(1));
  CHECK(pieces.size() == 3 && (pieces[2]->shape == Dims{5, 5}) && at(pieces[2], 0) == at(x, 1));
  CHECK_FAILS(shape, dispatch(named("split"), {x}, ints({1, 4}).integer(1)));
}

TEST(flip_copies) {
  const TensorRef x = floats({3, 4});
  const TensorRef y = call("flip", {x}, ints({0, 1}));
  CHECK(!(y->storage == x->storage));
  for (int64_t i = 0; i < 12; ++i) CHECK(at(y, i) == at(x, 11 - i));
}

TEST(views_of_meta_tensors) {
  const TensorRef x = meta({4, 6});
  CHECK((call("reshape", {call("permute", {x}, ints({1, 0}))}, ints({24}))->shape == Dims{24}));
  CHECK((call("flip", {x}, ints({0}))->device == Device::meta));
  CHECK((call("cat", {x, x}, Attrs().integer(1))->shape == Dims{4, 12}));
}

TEST(copies_between_layouts) {
  // Every order of three dimensions, into a packed tensor and into a part of a larger one.
  const TensorRef x = floats({33, 70, 5});
  const Dims orders[] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (const Dims& order : orders) {
    const TensorRef view = call("permute", {x}, ints(order));
    CHECK(same_values(view, contiguous(view)));
    const TensorRef large = floats({80, 80, 80}, [](int64_t) { return 7.0f; });
    const TensorRef part = Tensor::view(*large, view->shape, large->strides, large->strides[0] + 2);
    copy_into(*view, *part);
    CHECK(same_values(view, part));
    CHECK(at(large, 0) == 7 && at(large, large->numel - 1) == 7);
    CHECK(same_values(view, cast(cast(view, DType::f64), DType::f32)));
  }
}

TEST(conversions) {
  const float values[] = {0,     -0.0f, 1,     -1.5f, 3.999f,   -7,
                          65504, 65520, 1e-7f, 6e-8f, INFINITY, 1e30f};
  const TensorRef x = floats({12}, [&](int64_t i) { return values[i]; });
  const TensorRef h = cast(cast(x, DType::f16), DType::f32);
  CHECK(at(h, 4) == 3.998046875 && at(h, 6) == 65504 && at(h, 7) == INFINITY &&
        at(h, 10) == INFINITY);
  CHECK(at(h, 8) == 0x1p-23 && at(h, 9) == 0x1p-24);
  const TensorRef b = cast(cast(x, DType::bf16), DType::f32);
  CHECK(at(b, 3) == -1.5 && at(b, 10) == INFINITY && at(b, 6) == 65536);
  const TensorRef i = cast(x, DType::i32);
  CHECK(at(i, 3) == -1 && at(i, 4) == 3 && at(i, 5) == -7);
  CHECK(at(cast(x, DType::i64), 10) == double(INT64_MIN));
  CHECK(at(cast(x, DType::u8), 5) == 249);
  const TensorRef t = cast(x, DType::b8);
  CHECK(at(t, 1) == 0 && at(t, 8) == 1);
  const TensorRef nan = floats({1}, [](int64_t) { return NAN; });
  CHECK(std::isnan(at(cast(nan, DType::f16), 0)) && std::isnan(at(cast(nan, DType::bf16), 0)));
  CHECK(at(cast(nan, DType::b8), 0) == 1);
}

TEST(cat_pieces) {
  const TensorRef a = floats({2, 3}), b = floats({2, 2});
  const TensorRef y = call("cat", {a, transposed(transposed(b)), a}, Attrs().integer(1));
  CHECK((y->shape == Dims{2, 8}) && at(y, 3) == at(b, 0) && at(y, 8 + 5) == at(a, 3));
  CHECK(call("cat", {a, floats({0})}, Attrs().integer(0))->numel == 6);
  const TensorRef mixed = call(
      "cat", {longs({2}, [](int64_t i) { return i; }), floats({1}, [](int64_t) { return 0.5f; })},
      Attrs().integer(0));
  CHECK(mixed->dtype == DType::f32 && at(mixed, 1) == 1 && at(mixed, 2) == 0.5);
  CHECK_FAILS(shape, call("cat", {a, b}, Attrs().integer(0)));
  CHECK_FAILS(index, call("cat", {a, b}, Attrs().integer(2)));
}

TEST(slice_scatter_in_and_out_of_place) {
  const TensorRef x = floats({4, 4}, [](int64_t) { return 1.0f; });
  const TensorRef src = floats({2, 4}, [](int64_t i) { return float(i) + 10; });
  const Attrs attrs = region({0, 0}, {2, 4}, {2, 1});
  const TensorRef y = call("slice_scatter", {x, src}, attrs);
  CHECK(at(x, 0) == 1 && at(y, 0) == 10 && at(y, 4) == 1 && at(y, 8) == 14);
  const Tensors in = {x, src};
  dispatch(named("slice_scatter"), in, attrs, x.get());
  CHECK(same_values(x, y) && x->storage->version == 1);
  // From an overlapping part of itself.
  const TensorRef z = floats({5}, [](int64_t i) { return float(i); });
  const TensorRef head = Tensor::view(*z, {4}, {1}, 0);
  dispatch(named("slice_scatter"), {z, head}, region({1}, {4}, {1}), z.get());
  for (int64_t i = 1; i < 5; ++i) CHECK(at(z, i) == double(i - 1));
  CHECK_FAILS(shape, call("slice_scatter", {x, src}, region({0, 0}, {3, 4}, {1, 1})));
  CHECK_FAILS(index, call("slice_scatter", {x, src}, region({3, 0}, {2, 4}, {1, 1})));
}
