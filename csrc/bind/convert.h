// Operands and attributes: Python values to core values and back.
#pragma once
#include "python.h"

namespace eager::bind {

// The Python side of an op.
struct PyOp {
  const Op* op = nullptr;
  PyObject* object = nullptr;  // the eager.op.Op
  PyObject* names = nullptr;   // tuple of its attributes' names; null if there are none
};
// Makes `object` the definition of `op`; both live as long as the process.
void define_op(const Op& op, PyObject* object);
const PyOp& python_op(const Op& op);  // raises if the op has not been defined

// Ops the binding calls itself, found by name once.
// clang-format off
#define EAGER_OPS(X) \
  X(add) X(sub) X(mul) X(div) X(floor_divide) X(remainder) X(pow) X(neg) X(abs) X(eq) X(ne) \
  X(lt) X(le) X(gt) X(ge) X(bitwise_and) X(bitwise_or) X(bitwise_xor) X(bitwise_not) \
  X(logical_not) X(bitwise_left_shift) X(bitwise_right_shift) X(where) X(clone) X(cast) X(full) \
  X(full_int) X(arange_int) X(reshape) X(permute) X(expand) X(slice) X(detach) X(sum) X(matmul) \
  X(slice_scatter) X(index_select) X(index_copy) X(nonzero) X(square) X(sqrt) X(reciprocal)
// clang-format on
struct KnownOps {
#define X(name) const Op* name;
  EAGER_OPS(X)
#undef X
};
extern KnownOps known;
void find_known_ops();  // throws if the table lacks one

// A tensor, or a number, NumPy scalar or NumPy array that stands for one.  False: none of these.
bool to_operand(PyObject* o, TensorRef& out);
// As to_operand, but raises TypeError.
TensorRef operand(PyObject* o, const char* what);
// A sequence of operands.
Tensors operands(PyObject* sequence, const char* what);
bool is_number(PyObject* o);  // a Python or NumPy number

void append_attribute(Attrs& attrs, AttrType type, PyObject* value, const char* what);
Attrs attributes_from_dict(const Op& op, PyObject* dict);
// The Python values in the schema's order, whose names are python_op(op).names.
Small<Owned, 4> attribute_values(const Op& op, const Attrs& attrs);
Owned attributes_to_dict(const Op& op, const Attrs& attrs);

}  // namespace eager::bind
