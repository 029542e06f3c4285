// Number slots: + - * / and so on, comparisons, and conversions to Python numbers.
#include <cmath>

#include "calls.h"
#include "convert.h"
#include "interchange.h"
#include "tensor.h"

namespace eager::bind {
namespace {

// Other types than tensors and numbers may know what to do with a tensor.
PyObject* binary_slot(const Op* op, PyObject* a, PyObject* b) {
  return guarded([&]() -> PyObject* {
    if (is_tensor(a) && is_tensor(b)) return wrap(binary(*op, tensor_of(a), tensor_of(b)));
    TensorRef x, y;
    if (!to_operand(a, x) || !to_operand(b, y)) Py_RETURN_NOTIMPLEMENTED;
    return wrap(binary(*op, x, y));
  });
}

PyObject* unary_slot(const Op* op, PyObject* a) {
  return guarded([&] { return wrap(unary(*op, tensor_of(a))); });
}

// `base[key] op= y` under the tape: Python takes base[key], a view that only its stack refers to,
// applies the operator and assigns the result to base[key], which is where the gradient is
// recorded.  The view itself need not be written, and under the tape cannot be.
bool assigned_back(PyObject* a, const TensorRef& x, const TensorRef& y) {
  return Py_REFCNT(a) == 1 && x->is_view && grad_enabled() &&
         (x->requires_grad() || y->requires_grad());
}

// x op= y writes into x and gives x.
PyObject* inplace_slot(const Op* op, PyObject* a, PyObject* b) {
  return guarded([&]() -> PyObject* {
    Tensors in(2, TensorRef());
    if (!is_tensor(a) || !to_operand(b, in[1])) Py_RETURN_NOTIMPLEMENTED;
    in[0] = tensor_of(a);
    if (assigned_back(a, in[0], in[1])) {
      return wrap(to_dtype(binary(*op, in[0], in[1]), in[0]->dtype));
    }
    dispatch(*op, in, Attrs(), in[0].get());
    return Py_NewRef(a);
  });
}

template <const Op* KnownOps::* op>
PyObject* binary_of(PyObject* a, PyObject* b) {
  return binary_slot(known.*op, a, b);
}
template <const Op* KnownOps::* op>
PyObject* inplace_of(PyObject* a, PyObject* b) {
  return inplace_slot(known.*op, a, b);
}
template <const Op* KnownOps::* op>
PyObject* unary_of(PyObject* a) {
  return unary_slot(known.*op, a);
}

// The op of a power that needs no pow, which cannot be vectorised; null for all others.
const Op* simple_power(PyObject* base, PyObject* exponent) {
  if (!is_tensor(base)) return nullptr;
  const DType dtype = tensor_of(base)->dtype;
  double e = 0;
  if (PyFloat_CheckExact(exponent) && is_floating(dtype)) {
    e = PyFloat_AS_DOUBLE(exponent);
  } else if (PyLong_CheckExact(exponent) && dtype != DType::b8) {
    int overflow;
    const long value = PyLong_AsLongAndOverflow(exponent, &overflow);
    if (!overflow) e = double(value);
  }
  if (e == 2) return known.square;
  if (!is_floating(dtype)) return nullptr;
  return e == 0.5 ? known.sqrt : e == -1 ? known.reciprocal : nullptr;
}

PyObject* power(PyObject* a, PyObject* b, PyObject* modulus) {
  if (modulus != Py_None) Py_RETURN_NOTIMPLEMENTED;
  if (const Op* op = simple_power(a, b)) return unary_slot(op, a);
  return binary_slot(known.pow, a, b);
}
PyObject* inplace_power(PyObject* a, PyObject* b, PyObject*) {
  return inplace_slot(known.pow, a, b);
}
PyObject* invert(PyObject* a) {
  return unary_slot(tensor_of(a)->dtype == DType::b8 ? known.logical_not : known.bitwise_not, a);
}
PyObject* positive(PyObject* a) { return Py_NewRef(a); }

PyObject* matrix_multiply(PyObject* a, PyObject* b) {
  if (!is_tensor(a) || !is_tensor(b)) {
    TensorRef x, y;
    return guarded([&]() -> PyObject* {
      if (is_number(a) || is_number(b) || !to_operand(a, x) || !to_operand(b, y)) {
        Py_RETURN_NOTIMPLEMENTED;
      }
      return wrap(matmul(x, y));
    });
  }
  return guarded([&] { return wrap(matmul(tensor_of(a), tensor_of(b))); });
}

int truth(PyObject* self) {
  return guarded(
      [&] {
        Owned value = read_item(self, "bool");
        return PyObject_IsTrue(value.get());
      },
      -1);
}
PyObject* to_int(PyObject* self) {
  return guarded([&] {
    Owned value = read_item(self, "int");
    return PyNumber_Long(value.get());
  });
}
PyObject* to_float(PyObject* self) {
  return guarded([&] {
    Owned value = read_item(self, "float");
    return PyNumber_Float(value.get());
  });
}
PyObject* to_index(PyObject* self) {
  return guarded([&]() -> PyObject* {
    const TensorRef& t = tensor_of(self);
    if (is_floating(t->dtype) || t->numel != 1) {
      raise(PyExc_TypeError, "only integer tensors of one element can be used as an index");
    }
    Owned value = read_item(self, "index");
    return PyNumber_Index(value.get());
  });
}

PyNumberMethods number_methods() {
  PyNumberMethods n{};
  n.nb_add = binary_of<&KnownOps::add>;
  n.nb_subtract = binary_of<&KnownOps::sub>;
  n.nb_multiply = binary_of<&KnownOps::mul>;
  n.nb_true_divide = binary_of<&KnownOps::div>;
  n.nb_floor_divide = binary_of<&KnownOps::floor_divide>;
  n.nb_remainder = binary_of<&KnownOps::remainder>;
  n.nb_power = power;
  n.nb_matrix_multiply = matrix_multiply;
  n.nb_and = binary_of<&KnownOps::bitwise_and>;
  n.nb_or = binary_of<&KnownOps::bitwise_or>;
  n.nb_xor = binary_of<&KnownOps::bitwise_xor>;
  n.nb_lshift = binary_of<&KnownOps::bitwise_left_shift>;
  n.nb_rshift = binary_of<&KnownOps::bitwise_right_shift>;
  n.nb_inplace_add = inplace_of<&KnownOps::add>;
  n.nb_inplace_subtract = inplace_of<&KnownOps::sub>;
  n.nb_inplace_multiply = inplace_of<&KnownOps::mul>;
  n.nb_inplace_true_divide = inplace_of<&KnownOps::div>;
  n.nb_inplace_floor_divide = inplace_of<&KnownOps::floor_divide>;
  n.nb_inplace_remainder = inplace_of<&KnownOps::remainder>;
  n.nb_inplace_power = inplace_power;
  n.nb_inplace_and = inplace_of<&KnownOps::bitwise_and>;
  n.nb_inplace_or = inplace_of<&KnownOps::bitwise_or>;
  n.nb_inplace_xor = inplace_of<&KnownOps::bitwise_xor>;
  n.nb_inplace_lshift = inplace_of<&KnownOps::bitwise_left_shift>;
  n.nb_inplace_rshift = inplace_of<&KnownOps::bitwise_right_shift>;
  n.nb_negative = unary_of<&KnownOps::neg>;
  n.nb_absolute = unary_of<&KnownOps::abs>;
  n.nb_invert = invert;
  n.nb_positive = positive;
  n.nb_bool = truth;
  n.nb_int = to_int;
  n.nb_float = to_float;
  n.nb_index = to_index;
  return n;
}

}  // namespace

PyNumberMethods tensor_number = number_methods();

PyObject* tensor_compare(PyObject* self, PyObject* other, int op) {
  switch (op) {
    case Py_EQ:
      return binary_slot(known.eq, self, other);
    case Py_NE:
      return binary_slot(known.ne, self, other);
    case Py_LT:
      return binary_slot(known.lt, self, other);
    case Py_LE:
      return binary_slot(known.le, self, other);
    case Py_GT:
      return binary_slot(known.gt, self, other);
    default:
      return binary_slot(known.ge, self, other);
  }
}

}  // namespace eager::bind
