// The calls of single ops that the binding's methods are made of.
#include "calls.h"

#include <algorithm>

#include "convert.h"
#include "types.h"

namespace eager::bind {

TensorRef call(const Op& op, const Tensors& in, const Attrs& attrs) {
  return std::move(dispatch(op, in, attrs)[0]);
}

TensorRef reshape(const TensorRef& x, const Dims& shape) {
  return call(*known.reshape, {x}, Attrs().ints(shape));
}

TensorRef permute(const TensorRef& x, const Dims& dims) {
  return call(*known.permute, {x}, Attrs().ints(dims));
}

TensorRef expand(const TensorRef& x, const Dims& shape) {
  return x->shape == shape ? x : call(*known.expand, {x}, Attrs().ints(shape));
}

TensorRef to_dtype(const TensorRef& x, DType dtype) {
  if (x->dtype == dtype && !x->weak) return x;
  return call(*known.cast, {x}, Attrs().integer(int64_t(dtype)));
}

TensorRef matmul(const TensorRef& a, const TensorRef& b) {
  if (a->ndim() >= 2 && b->ndim() >= 2) return binary(*known.matmul, a, b);
  if (a->ndim() == 0 || b->ndim() == 0) {
    fail(ErrorKind::shape, "matmul", "an operand has no dimensions", "at least one dimension each",
         "shapes " + to_string(a->shape) + " and " + to_string(b->shape),
         "multiply by a scalar with *");
  }
  TensorRef x = a->ndim() == 1 ? reshape(a, {1, a->shape[0]}) : a;
  TensorRef y = b->ndim() == 1 ? reshape(b, {b->shape[0], 1}) : b;
  TensorRef z = binary(*known.matmul, x, y);
  Dims shape(z->shape.begin(), z->shape.end() - 2);
  if (a->ndim() > 1) shape.push_back(z->shape[z->ndim() - 2]);
  if (b->ndim() > 1) shape.push_back(z->shape[z->ndim() - 1]);
  return reshape(z, shape);
}

TensorRef sum(const TensorRef& x, const Dims& dims, bool keepdim) {
  return call(*known.sum, {x}, Attrs().ints(dims).integer(keepdim));
}

TensorRef index_select(const TensorRef& x, const TensorRef& index, int64_t dim) {
  return call(*known.index_select, {x, index}, Attrs().integer(dim));
}

TensorRef nonzero(const TensorRef& x) { return call(*known.nonzero, {x}, Attrs()); }

namespace {

// Attributes of an op that makes a tensor from numbers, in the order of its definition.
Attrs generator(const Op& op, const Dims& shape, DType dtype, double value,
                std::initializer_list<int64_t> integers) {
  Attrs attrs;
  const int64_t* next = integers.begin();
  for (int i = 0; i < op.n_attrs; ++i) {
    switch (op.attr_types[i]) {
      case AttrType::ints:
        attrs.ints(shape);
        break;
      case AttrType::floating:
        attrs.floating(value);
        break;
      case AttrType::dtype:
        attrs.integer(int64_t(dtype));
        break;
      default:
        attrs.integer(*next++);
        break;
    }
  }
  return attrs;
}

}  // namespace

TensorRef full(const Dims& shape, double value, DType dtype) {
  return call(*known.full, {}, generator(*known.full, shape, dtype, value, {}));
}

TensorRef arange(int64_t count, int64_t step) {
  return call(*known.arange_int, {},
              generator(*known.arange_int, {count}, DType::i64, 0, {0, step}));
}

void fill(const TensorRef& x, bool integer, double value, int64_t integer_value) {
  const Op& op = integer ? *known.full_int : *known.full;
  dispatch(op, {}, generator(op, x->shape, x->dtype, value, {integer_value}), x.get());
}

void assign(const TensorRef& target, const TensorRef& value, const char* what) {
  if (value->ndim() > target->ndim()) {
    fail(ErrorKind::shape, what, "the value has more dimensions than the tensor",
         "a value that broadcasts to " + to_string(target->shape),
         "shape " + to_string(value->shape));
  }
  dispatch(*known.cast, {expand(value, target->shape)}, Attrs().integer(int64_t(target->dtype)),
           target.get());
}

int64_t canonical_dim(const char* what, int64_t dim, size_t ndim) {
  const int64_t n = int64_t(std::max<size_t>(ndim, 1));
  if (dim < -n || dim >= n) {
    fail(ErrorKind::index, what, "dimension out of range",
         "from " + std::to_string(-n) + " to " + std::to_string(n - 1) + " for " +
             std::to_string(ndim) + " dimensions",
         std::to_string(dim));
  }
  return dim < 0 ? dim + n : dim;
}

Dims canonical_dims(const char* what, PyObject* given, size_t ndim) {
  Dims dims;
  if (given && PyLong_Check(given)) {
    dims.push_back(to_integer(given, what));
  } else if (given && given != Py_None) {
    dims = to_ints(given, what);
  }
  if (dims.empty()) {
    for (size_t d = 0; d < ndim; ++d) dims.push_back(int64_t(d));
    return dims;
  }
  for (int64_t& d : dims) d = canonical_dim(what, d, ndim);
  if (ndim == 0) return Dims();
  std::sort(dims.begin(), dims.end());
  if (std::adjacent_find(dims.begin(), dims.end()) != dims.end()) {
    fail(ErrorKind::value, what, "a dimension is named twice", "distinct dimensions",
         to_string(dims));
  }
  return dims;
}

Dims resolve_shape(const char* what, Dims shape, int64_t count) {
  int64_t* open = nullptr;
  int64_t known_count = 1;
  const std::string given = to_string(shape);
  for (int64_t& n : shape) {
    if (n == -1 && !open) {
      open = &n;
    } else if (n < 0) {
      fail(ErrorKind::shape, what, "a size is negative", "sizes of 0 or more, and at most one -1",
           given);
    } else if (__builtin_mul_overflow(known_count, n, &known_count)) {
      fail(ErrorKind::shape, what, "the shape has too many elements",
           std::to_string(count) + " elements", given);
    }
  }
  if (open) {
    if (known_count == 0 || count % known_count != 0) {
      fail(ErrorKind::shape, what, "-1 cannot be inferred",
           "a shape that divides " + std::to_string(count) + " elements", given);
    }
    *open = count / known_count;
  } else if (known_count != count) {
    fail(ErrorKind::shape, what, "the number of elements differs",
         std::to_string(count) + " elements", given);
  }
  return shape;
}

}  // namespace eager::bind
