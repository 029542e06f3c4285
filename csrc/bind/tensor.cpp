// The Tensor type: life cycle, identity, garbage collection.
#include "tensor.h"

#include <cstddef>
#include <vector>

namespace eager::bind {

PyTypeObject* tensor_type;

namespace {

// Dead objects of the exact type, ready for reuse; guarded by the interpreter lock.
constexpr int kFreeMax = 256;
PyTensor* free_list[kFreeMax];
int free_count = 0;

PyTensor* as_self(PyObject* o) { return reinterpret_cast<PyTensor*>(o); }

PyObject* attach(PyTensor* self, TensorRef t) {
  self->dict = nullptr;
  self->weakrefs = nullptr;
  t->pyobj = self;
  new (&self->t) TensorRef(std::move(t));
  return reinterpret_cast<PyObject*>(self);
}

void tensor_dealloc(PyObject* o) {
  PyObject_GC_UnTrack(o);
  PyTensor* self = as_self(o);
  // First of all: what follows may run Python code, which must not find this object again.
  if (self->t && self->t->pyobj == self) self->t->pyobj = nullptr;
  if (self->weakrefs) PyObject_ClearWeakRefs(o);
  Py_CLEAR(self->dict);
  self->t.~TensorRef();
  PyTypeObject* type = Py_TYPE(o);
  if (type == tensor_type && free_count < kFreeMax) {
    free_list[free_count++] = self;
  } else {
    type->tp_free(o);
  }
  Py_DECREF(type);
}

int tensor_traverse(PyObject* o, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(o));
  Py_VISIT(as_self(o)->dict);
  // A tensor shared with the tape or other owners keeps its history alive whatever happens here.
  const TensorRef& t = as_self(o)->t;
  return t && t.unique() ? traverse_history(*t, visit, arg) : 0;
}

int tensor_clear(PyObject* o) {
  Py_CLEAR(as_self(o)->dict);
  return 0;
}

int tensor_setattro(PyObject* self, PyObject* name, PyObject* value) {
  int status = PyObject_GenericSetAttr(self, name, value);
  if (as_self(self)->dict) track(self);
  return status;
}

PyObject* get_dict(PyObject* self, void*) {
  PyObject* dict = PyObject_GenericGetDict(self, nullptr);
  if (dict) track(self);
  return dict;
}
int set_dict(PyObject* self, PyObject* value, void*) {
  int status = PyObject_GenericSetDict(self, value, nullptr);
  if (status == 0) track(self);
  return status;
}

PyObject* tensor_repr(PyObject* self) {
  return guarded([&] {
    static PyObject* repr;
    return PyObject_CallOneArg(import_once(repr, "eager._repr", "tensor_repr"), self);
  });
}

Py_hash_t tensor_hash(PyObject* self) { return PyBaseObject_Type.tp_hash(self); }

Py_ssize_t tensor_length(PyObject* self) {
  return guarded(
      [&]() -> Py_ssize_t {
        const TensorRef& t = tensor_of(self);
        if (t->ndim() == 0) raise(PyExc_TypeError, "len() of a 0-dim tensor");
        return t->shape[0];
      },
      Py_ssize_t(-1));
}

// Serves iteration, which ends at the first IndexError.
PyObject* tensor_item(PyObject* self, Py_ssize_t i) {
  const TensorRef& t = tensor_of(self);
  if (t->ndim() > 0 && i >= t->shape[0]) {
    PyErr_SetNone(PyExc_IndexError);
    return nullptr;
  }
  PyObject* index = PyLong_FromSsize_t(i);
  if (!index) return nullptr;
  PyObject* item = tensor_getitem(self, index);
  Py_DECREF(index);
  return item;
}

PyObject* tensor_iter(PyObject* self) {
  if (tensor_of(self)->ndim() == 0) {
    PyErr_SetString(PyExc_TypeError, "iteration over a 0-dim tensor");
    return nullptr;
  }
  return PySeqIter_New(self);
}

int tensor_contains(PyObject* self, PyObject* value) {
  PyObject* equal = PyObject_RichCompare(self, value, Py_EQ);
  if (!equal) return -1;
  int found = -1;
  if (is_tensor(equal)) {
    PyObject* any = PyObject_CallMethod(equal, "any", nullptr);
    found = any ? PyObject_IsTrue(any) : -1;
    Py_XDECREF(any);
  } else {
    found = PyObject_IsTrue(equal);
  }
  Py_DECREF(equal);
  return found;
}

PyMemberDef members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(PyTensor, dict), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(PyTensor, weakrefs), READONLY, nullptr},
    {nullptr}};

const char* name_of(const PyMethodDef& m) { return m.ml_name; }
const char* name_of(const PyGetSetDef& g) { return g.name; }

// One table from several; the type keeps pointers into it for as long as the process runs.
template <class Def>
Def* joined(std::initializer_list<const Def*> tables) {
  auto* all = new std::vector<Def>;
  for (const Def* table : tables) {
    for (; name_of(*table); ++table) all->push_back(*table);
  }
  all->push_back(Def{});
  return all->data();
}

template <class F>
void* slot(F f) {
  return reinterpret_cast<void*>(f);
}

}  // namespace

void init_tensor_type(PyObject* module) {
  static const PyGetSetDef dict_property[] = {{"__dict__", get_dict, set_dict, nullptr, nullptr},
                                              {nullptr}};
  const PyNumberMethods& n = tensor_number;
  PyType_Slot slots[] = {
      {Py_tp_dealloc, slot(tensor_dealloc)},
      {Py_tp_traverse, slot(tensor_traverse)},
      {Py_tp_clear, slot(tensor_clear)},
      {Py_tp_setattro, slot(tensor_setattro)},
      {Py_tp_getattro, slot(PyObject_GenericGetAttr)},
      {Py_tp_new, slot(tensor_new)},
      {Py_tp_repr, slot(tensor_repr)},
      {Py_tp_hash, slot(tensor_hash)},
      {Py_tp_richcompare, slot(tensor_compare)},
      {Py_tp_iter, slot(tensor_iter)},
      {Py_tp_members, members},
      {Py_tp_getset, joined<PyGetSetDef>({tensor_properties, dict_property})},
      {Py_tp_methods, joined<PyMethodDef>({shape_methods, value_methods, interchange_methods,
                                           dlpack_methods, creation_methods, autograd_methods})},
      {Py_tp_doc, const_cast<char*>("Tensor(data)\n\nAn array of numbers of one dtype, with its "
                                    "place in the tape.  Make one with eager.tensor.")},
      {Py_sq_length, slot(tensor_length)},
      {Py_sq_item, slot(tensor_item)},
      {Py_sq_contains, slot(tensor_contains)},
      {Py_mp_length, slot(tensor_length)},
      {Py_mp_subscript, slot(tensor_getitem)},
      {Py_mp_ass_subscript, slot(tensor_setitem)},
      {Py_bf_getbuffer, slot(tensor_getbuffer)},
      {Py_bf_releasebuffer, slot(tensor_releasebuffer)},
      {Py_nb_add, slot(n.nb_add)},
      {Py_nb_subtract, slot(n.nb_subtract)},
      {Py_nb_multiply, slot(n.nb_multiply)},
      {Py_nb_true_divide, slot(n.nb_true_divide)},
      {Py_nb_floor_divide, slot(n.nb_floor_divide)},
      {Py_nb_remainder, slot(n.nb_remainder)},
      {Py_nb_power, slot(n.nb_power)},
      {Py_nb_matrix_multiply, slot(n.nb_matrix_multiply)},
      {Py_nb_and, slot(n.nb_and)},
      {Py_nb_or, slot(n.nb_or)},
      {Py_nb_xor, slot(n.nb_xor)},
      {Py_nb_lshift, slot(n.nb_lshift)},
      {Py_nb_rshift, slot(n.nb_rshift)},
      {Py_nb_inplace_add, slot(n.nb_inplace_add)},
      {Py_nb_inplace_subtract, slot(n.nb_inplace_subtract)},
      {Py_nb_inplace_multiply, slot(n.nb_inplace_multiply)},
      {Py_nb_inplace_true_divide, slot(n.nb_inplace_true_divide)},
      {Py_nb_inplace_floor_divide, slot(n.nb_inplace_floor_divide)},
      {Py_nb_inplace_remainder, slot(n.nb_inplace_remainder)},
      {Py_nb_inplace_power, slot(n.nb_inplace_power)},
      {Py_nb_inplace_and, slot(n.nb_inplace_and)},
      {Py_nb_inplace_or, slot(n.nb_inplace_or)},
      {Py_nb_inplace_xor, slot(n.nb_inplace_xor)},
      {Py_nb_inplace_lshift, slot(n.nb_inplace_lshift)},
      {Py_nb_inplace_rshift, slot(n.nb_inplace_rshift)},
      {Py_nb_negative, slot(n.nb_negative)},
      {Py_nb_positive, slot(n.nb_positive)},
      {Py_nb_absolute, slot(n.nb_absolute)},
      {Py_nb_invert, slot(n.nb_invert)},
      {Py_nb_bool, slot(n.nb_bool)},
      {Py_nb_int, slot(n.nb_int)},
      {Py_nb_float, slot(n.nb_float)},
      {Py_nb_index, slot(n.nb_index)},
      {0, nullptr}};
  PyType_Spec spec = {"eager.Tensor", sizeof(PyTensor), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
  Owned type = check(PyType_FromSpec(&spec));
  // NumPy then leaves `array * tensor` to the tensor.
  Owned priority = check(PyFloat_FromDouble(1000.0));
  check_status(PyObject_SetAttrString(type.get(), "__array_priority__", priority.get()));
  check_status(PyObject_SetAttrString(module, "Tensor", type.get()));
  tensor_type = reinterpret_cast<PyTypeObject*>(type.release());
}

const TensorRef& expect_tensor(PyObject* o, const char* what) {
  if (!is_tensor(o)) {
    raise(PyExc_TypeError, std::string(what) + ": expected a Tensor, not " + Py_TYPE(o)->tp_name);
  }
  return tensor_of(o);
}

PyObject* wrap(TensorRef t) {
  if (!t) Py_RETURN_NONE;
  if (t->pyobj) return Py_NewRef(static_cast<PyObject*>(t->pyobj));
  PyTensor* self;
  if (free_count > 0) {
    self = free_list[--free_count];
    PyObject_Init(reinterpret_cast<PyObject*>(self), tensor_type);
  } else {
    self = PyObject_GC_New(PyTensor, tensor_type);
    if (!self) return nullptr;
  }
  return attach(self, std::move(t));
}

PyObject* wrap_as(PyTypeObject* type, TensorRef t) {
  if (type == tensor_type) return wrap(std::move(t));
  PyObject* o = type->tp_alloc(type, 0);
  return o ? attach(as_self(o), std::move(t)) : nullptr;
}

Owned wrap_tuple(const Tensors& tensors) {
  Owned tuple = check(PyTuple_New(Py_ssize_t(tensors.size())));
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), Py_ssize_t(i), check(wrap(tensors[i])).release());
  }
  return tuple;
}

PyObject* wrap_outputs(const Op& op, const Tensors& outputs) {
  return op.outputs == 1 ? wrap(outputs[0]) : wrap_tuple(outputs).release();
}

void track(PyObject* self) {
  if (!PyObject_GC_IsTracked(self)) PyObject_GC_Track(self);
}

}  // namespace eager::bind
