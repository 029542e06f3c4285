#include "tensor.h"

#include <atomic>

#include "allocator.h"
#include "placement.h"
#include "tape.h"

namespace eager::core {
namespace {

std::atomic<DType> default_float{DType::f32};

TensorRef new_tensor() {
  auto* t = new (allocate_object(sizeof(Tensor))) Tensor;
  t->refs.store(1, std::memory_order_relaxed);
  return TensorRef::adopt(t);
}

bool is_contiguous(const Dims& shape, const Dims& strides, int64_t numel) {
  if (numel == 0) return true;
  int64_t expected = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (shape[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

template <class T>
TensorRef scalar_of(T value, DType dtype) {
  TensorRef t = Tensor::empty({}, dtype);
  *t->as<T>() = value;
  t->weak = true;
  return t;
}

}  // namespace

int64_t element_count(const Dims& shape) {
  // In two steps, because the other sizes of an empty tensor may multiply to anything.
  for (int64_t d : shape)
    if (d == 0) return 0;
  int64_t n = 1;
  for (int64_t d : shape) {
    if (__builtin_mul_overflow(n, d, &n)) {
      fail(ErrorKind::shape, "shape", "there are too many elements", "fewer than 2**63",
           to_string(shape));
    }
  }
  return n;
}

// As element_count, for shapes that a user gave.
static int64_t checked_count(const Dims& shape, size_t size) {
  int64_t n = 1;
  bool overflow = false;
  for (int64_t d : shape) {
    if (d < 0) {
      fail(ErrorKind::shape, "empty", "a dimension is negative", "sizes of 0 or more",
           to_string(shape));
    }
    overflow |= __builtin_mul_overflow(n, d, &n);
  }
  int64_t bytes;
  if (overflow || __builtin_mul_overflow(n, int64_t(size), &bytes)) {
    // A zero-sized dimension makes the product 0 however large the others are.
    for (int64_t d : shape)
      if (d == 0) return 0;
    fail(ErrorKind::memory, "empty", "the number of bytes does not fit into 64 bits",
         "a smaller shape", to_string(shape));
  }
  return n;
}

Dims contiguous_strides(const Dims& shape) {
  Dims strides;
  strides.resize(shape.size());
  uint64_t step = 1;  // may wrap around if there are no elements
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = int64_t(step);
    step *= uint64_t(shape[d] > 1 ? shape[d] : 1);
  }
  return strides;
}

TensorRef Tensor::empty(const Dims& shape, DType dtype, Device device) {
  const int64_t n = checked_count(shape, item_size(dtype));
  return over(Storage::allocate(size_t(n) * item_size(dtype), device), shape, dtype);
}

TensorRef Tensor::over(Ref<Storage> storage, const Dims& shape, DType dtype) {
  TensorRef t = new_tensor();
  t->shape = shape;
  t->strides = contiguous_strides(shape);
  t->numel = element_count(shape);
  t->dtype = dtype;
  t->device = storage->device;
  t->storage = std::move(storage);
  return t;
}

TensorRef Tensor::view(const Tensor& base, Dims shape, Dims strides, int64_t offset) {
  TensorRef t = new_tensor();
  t->storage = base.storage;
  t->numel = element_count(shape);
  t->contiguous = is_contiguous(shape, strides, t->numel);
  t->shape = std::move(shape);
  t->strides = std::move(strides);
  t->offset = offset;
  t->dtype = base.dtype;
  t->device = base.device;
  t->is_view = true;
  return t;
}

TensorRef Tensor::scalar(bool v) { return scalar_of<uint8_t>(v, DType::b8); }
TensorRef Tensor::scalar(int64_t v) { return scalar_of<int64_t>(v, DType::i64); }
TensorRef Tensor::scalar(double v) { return scalar_of<double>(v, DType::f64); }

AutogradMeta& Tensor::meta() {
  if (!autograd) autograd = new (allocate_object(sizeof(AutogradMeta))) AutogradMeta;
  return *autograd;
}

void Tensor::destroy(Tensor* t) {
  while (t) {
    TensorRef grad;  // may have a gradient in turn, and so on: a loop needs no stack for them
    // The node goes through Node::destroy, which works off the tape without recursion.
    if (AutogradMeta* meta = t->autograd) {
      grad = std::move(meta->grad);
      meta->~AutogradMeta();
      deallocate_object(meta, sizeof(AutogradMeta));
    }
    t->~Tensor();
    deallocate_object(t, sizeof(Tensor));
    t = grad.unique() ? grad.release() : nullptr;
  }
}

DType default_dtype() { return default_float.load(std::memory_order_relaxed); }

void set_default_dtype(DType t) {
  if (!is_floating(t)) {
    fail(ErrorKind::dtype, "set_default_dtype", "the default dtype must be floating",
         "float32, float64, float16 or bfloat16", name(t));
  }
  default_float.store(t, std::memory_order_relaxed);
}

std::string to_string(const Dims& dims) {
  std::string s = "(";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i) s += ", ";
    s += std::to_string(dims[i]);
  }
  return s + (dims.size() == 1 ? ",)" : ")");
}

}  // namespace eager::core
