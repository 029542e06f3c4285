// The Python Tensor type.
#pragma once
#include "python.h"

namespace eager::bind {

struct PyTensor {
  PyObject_HEAD TensorRef t;
  PyObject* dict;
  PyObject* weakrefs;
};

extern PyTypeObject* tensor_type;

void init_tensor_type(PyObject* module);

inline bool is_tensor(PyObject* o) {
  return Py_TYPE(o) == tensor_type || PyType_IsSubtype(Py_TYPE(o), tensor_type);
}
inline const TensorRef& tensor_of(PyObject* o) { return reinterpret_cast<PyTensor*>(o)->t; }
// As tensor_of, but raises TypeError if `o` is not a tensor.
const TensorRef& expect_tensor(PyObject* o, const char* what);

// The Python object of a core tensor: the same one as long as it lives.  New reference.
PyObject* wrap(TensorRef t);
// A new object of the subclass `type` for `t`, which has none yet.
PyObject* wrap_as(PyTypeObject* type, TensorRef t);
// One tensor, or a tuple of them if the op has several outputs.
PyObject* wrap_outputs(const Op& op, const Tensors& outputs);
Owned wrap_tuple(const Tensors& tensors);  // null tensors become None

// Lets the garbage collector see `self`: needed once it can be part of a cycle, that is, when it
// gets an instance dictionary, a hook, or a history made of Python objects.
void track(PyObject* self);

// The slots and tables the other files contribute to the type.
extern PyNumberMethods tensor_number;
PyObject* tensor_compare(PyObject* self, PyObject* other, int op);
PyObject* tensor_getitem(PyObject* self, PyObject* key);
int tensor_setitem(PyObject* self, PyObject* key, PyObject* value);
int tensor_getbuffer(PyObject* self, Py_buffer* view, int flags);
void tensor_releasebuffer(PyObject* self, Py_buffer* view);
PyObject* tensor_new(PyTypeObject* type, PyObject* args, PyObject* kwargs);
extern PyMethodDef shape_methods[];
extern PyMethodDef value_methods[];
extern PyMethodDef interchange_methods[];
extern PyMethodDef creation_methods[];
extern PyMethodDef dlpack_methods[];
extern PyMethodDef autograd_methods[];
extern PyGetSetDef tensor_properties[];
// What of the tape of `t` only Python's garbage collector can free.
int traverse_history(const Tensor& t, visitproc visit, void* arg);

}  // namespace eager::bind
