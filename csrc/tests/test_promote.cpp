#include "test.h"

using namespace eager::core;

namespace {

DType tensors(DType a, DType b) { return promote(a, false, false, b, false, false); }
DType with_number(DType a, DType number) { return promote(a, false, false, number, true, true); }
DType with_scalar(DType a, DType scalar) { return promote(a, false, false, scalar, false, true); }

}  // namespace

TEST(promote_tensors) {
  CHECK(tensors(DType::f32, DType::f64) == DType::f64);
  CHECK(tensors(DType::f16, DType::bf16) == DType::f32);
  CHECK(tensors(DType::bf16, DType::f32) == DType::f32);
  CHECK(tensors(DType::f16, DType::i64) == DType::f16);
  CHECK(tensors(DType::u8, DType::i8) == DType::i16);
  CHECK(tensors(DType::i8, DType::u8) == DType::i16);
  CHECK(tensors(DType::u8, DType::i16) == DType::i16);
  CHECK(tensors(DType::i32, DType::u8) == DType::i32);
  CHECK(tensors(DType::i32, DType::i64) == DType::i64);
  CHECK(tensors(DType::b8, DType::u8) == DType::u8);
  CHECK(tensors(DType::b8, DType::b8) == DType::b8);
}

TEST(promote_numbers_and_scalars) {
  CHECK(with_number(DType::f16, DType::f64) == DType::f16);
  CHECK(with_number(DType::f64, DType::f64) == DType::f64);
  CHECK(with_number(DType::i32, DType::f64) == DType::f32);
  CHECK(with_number(DType::i32, DType::i64) == DType::i32);
  CHECK(with_number(DType::u8, DType::i64) == DType::u8);
  CHECK(with_number(DType::b8, DType::i64) == DType::i64);
  CHECK(with_number(DType::i8, DType::b8) == DType::i8);
  CHECK(with_scalar(DType::f32, DType::f64) == DType::f32);
  CHECK(with_scalar(DType::i64, DType::f64) == DType::f64);
  CHECK(with_scalar(DType::i32, DType::i64) == DType::i32);
  // A 0-dim tensor counts more than a number.
  CHECK(promote(DType::f16, false, true, DType::f64, true, true) == DType::f16);
  CHECK(promote(DType::i64, true, true, DType::i32, false, true) == DType::i32);
}

TEST(promote_follows_the_default_dtype) {
  set_default_dtype(DType::f64);
  const DType result = with_number(DType::i32, DType::f64);
  set_default_dtype(DType::f32);
  CHECK(result == DType::f64);
  CHECK_FAILS(dtype, (set_default_dtype(DType::i32), 0));
}

TEST(promote_castable) {
  CHECK(can_cast(DType::i64, DType::f16));
  CHECK(can_cast(DType::f64, DType::f16));
  CHECK(can_cast(DType::b8, DType::u8));
  CHECK(!can_cast(DType::f32, DType::i64));
  CHECK(!can_cast(DType::u8, DType::b8));
}

TEST(broadcasting_shapes) {
  CHECK(broadcast_shapes("x", {2, 1, 3}, {4, 1}) == (Dims{2, 4, 3}));
  CHECK(broadcast_shapes("x", {}, {5}) == (Dims{5}));
  CHECK(broadcast_shapes("x", {0, 1}, {1, 7}) == (Dims{0, 7}));
  CHECK_FAILS(shape, broadcast_shapes("x", {2, 3}, {2}));
  CHECK_FAILS(shape, broadcast_shapes("x", {0}, {2}));
}
