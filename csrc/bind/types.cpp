// dtype, device, Size, and conversions of plain arguments.
#include "types.h"

#include <cstring>

namespace eager::bind {

PyTypeObject* dtype_type;
PyTypeObject* device_type;
PyTypeObject* size_type;

namespace {

PyObject* dtypes[kDTypes];
PyObject* devices[2];

// --- dtype ---------------------------------------------------------------------------------------

DType dtype_of(PyObject* self) { return reinterpret_cast<PyDType*>(self)->value; }

PyObject* dtype_new(PyTypeObject*, PyObject* args, PyObject* kwargs) {
  return guarded([&]() -> PyObject* {
    const char* text;
    static const char* names[] = {"name", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s:dtype", const_cast<char**>(names), &text)) {
      return nullptr;
    }
    for (int i = 0; i < kDTypes; ++i) {
      if (std::strcmp(text, kDTypeName[i]) == 0) return Py_NewRef(dtypes[i]);
    }
    fail(ErrorKind::dtype, "dtype", "there is no dtype of this name",
         "float32, float64, float16, bfloat16, int8, int16, int32, int64, uint8 or bool", text);
  });
}
PyObject* dtype_repr(PyObject* self) {
  return PyUnicode_FromFormat("eager.%s", name(dtype_of(self)));
}
PyObject* dtype_reduce(PyObject* self, PyObject*) {
  return Py_BuildValue("O(s)", dtype_type, name(dtype_of(self)));
}
PyObject* dtype_to_numpy(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    DType t = dtype_of(self);
    Owned numpy = check(PyImport_ImportModule("numpy"));
    if (t != DType::bf16) {
      return PyObject_CallMethod(numpy.get(), "dtype", "s", name(t));
    }
    Owned scalar = import_attribute("ml_dtypes", "bfloat16");
    return PyObject_CallMethod(numpy.get(), "dtype", "O", scalar.get());
  });
}
PyObject* dtype_name(PyObject* self, void*) { return PyUnicode_FromString(name(dtype_of(self))); }
PyObject* dtype_itemsize(PyObject* self, void*) {
  return PyLong_FromSize_t(item_size(dtype_of(self)));
}
PyObject* dtype_is_floating(PyObject* self, void*) {
  return PyBool_FromLong(is_floating(dtype_of(self)));
}
PyObject* dtype_is_complex(PyObject*, void*) { Py_RETURN_FALSE; }
PyObject* dtype_is_signed(PyObject* self, void*) {
  DType t = dtype_of(self);
  return PyBool_FromLong(t != DType::u8 && t != DType::b8);
}

PyMethodDef dtype_methods[] = {
    EAGER_NOARGS("to_numpy", dtype_to_numpy, "The NumPy dtype of the same elements."),
    EAGER_NOARGS("__reduce__", dtype_reduce, nullptr),
    {nullptr}};
PyGetSetDef dtype_properties[] = {
    {"name", dtype_name, nullptr, "The dtype's name, such as \"float32\".", nullptr},
    {"itemsize", dtype_itemsize, nullptr, "Bytes of one element.", nullptr},
    {"is_floating_point", dtype_is_floating, nullptr, "Whether elements are floats.", nullptr},
    {"is_complex", dtype_is_complex, nullptr, "False: there are no complex dtypes.", nullptr},
    {"is_signed", dtype_is_signed, nullptr, "Whether elements can be negative.", nullptr},
    {nullptr}};
PyType_Slot dtype_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(dtype_new)},
    {Py_tp_repr, reinterpret_cast<void*>(dtype_repr)},
    {Py_tp_methods, dtype_methods},
    {Py_tp_getset, dtype_properties},
    {Py_tp_doc, const_cast<char*>("dtype(name)\n\nThe type of a tensor's elements.")},
    {0, nullptr}};
PyType_Spec dtype_spec = {"eager.dtype", sizeof(PyDType), 0, Py_TPFLAGS_DEFAULT, dtype_slots};

// --- device --------------------------------------------------------------------------------------

Device device_of(PyObject* self) { return reinterpret_cast<PyDevice*>(self)->value; }

Device device_named(const char* text) {
  if (std::strcmp(text, "cpu") == 0 || std::strcmp(text, "cpu:0") == 0) return Device::cpu;
  if (std::strcmp(text, "meta") == 0) return Device::meta;
  fail(ErrorKind::device, "device", "there is no such device", "\"cpu\" or \"meta\"", text);
}

PyObject* device_new(PyTypeObject*, PyObject* args, PyObject* kwargs) {
  return guarded([&]() -> PyObject* {
    PyObject* given;
    static const char* names[] = {"type", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:device", const_cast<char**>(names), &given)) {
      return nullptr;
    }
    return Py_NewRef(device_object(to_device(given)));
  });
}
PyObject* device_repr(PyObject* self) {
  return PyUnicode_FromFormat("device(type='%s')", name(device_of(self)));
}
PyObject* device_str(PyObject* self) { return PyUnicode_FromString(name(device_of(self))); }
PyObject* device_reduce(PyObject* self, PyObject*) {
  return Py_BuildValue("O(s)", device_type, name(device_of(self)));
}
PyObject* device_type_name(PyObject* self, void*) { return device_str(self); }
PyObject* device_index(PyObject*, void*) { Py_RETURN_NONE; }
// A device equals its name, so that `x.device == "cpu"` means what it says.
PyObject* device_compare(PyObject* self, PyObject* other, int op) {
  if ((op != Py_EQ && op != Py_NE)) Py_RETURN_NOTIMPLEMENTED;
  bool equal = self == other;
  if (PyUnicode_Check(other)) {
    equal = PyUnicode_CompareWithASCIIString(other, name(device_of(self))) == 0;
  } else if (Py_TYPE(other) != device_type) {
    Py_RETURN_NOTIMPLEMENTED;
  }
  return PyBool_FromLong(equal == (op == Py_EQ));
}
Py_hash_t device_hash(PyObject* self) {
  PyObject* text = device_str(self);
  if (!text) return -1;
  Py_hash_t h = PyObject_Hash(text);
  Py_DECREF(text);
  return h;
}

PyMethodDef device_methods[] = {EAGER_NOARGS("__reduce__", device_reduce, nullptr), {nullptr}};
PyGetSetDef device_properties[] = {
    {"type", device_type_name, nullptr, "\"cpu\" or \"meta\".", nullptr},
    {"index", device_index, nullptr, "None: there is one device of each type.", nullptr},
    {nullptr}};
PyType_Slot device_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(device_new)},
    {Py_tp_repr, reinterpret_cast<void*>(device_repr)},
    {Py_tp_str, reinterpret_cast<void*>(device_str)},
    {Py_tp_richcompare, reinterpret_cast<void*>(device_compare)},
    {Py_tp_hash, reinterpret_cast<void*>(device_hash)},
    {Py_tp_methods, device_methods},
    {Py_tp_getset, device_properties},
    {Py_tp_doc,
     const_cast<char*>(
         "device(type)\n\nWhere a tensor lives: \"cpu\", or \"meta\" for shape and dtype only.")},
    {0, nullptr}};
PyType_Spec device_spec = {"eager.device", sizeof(PyDevice), 0, Py_TPFLAGS_DEFAULT, device_slots};

// --- Size ----------------------------------------------------------------------------------------

PyObject* size_repr(PyObject* self) {
  PyObject* list = PySequence_List(self);
  if (!list) return nullptr;
  PyObject* text = PyUnicode_FromFormat("eager.Size(%R)", list);
  Py_DECREF(list);
  return text;
}
PyObject* size_numel(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    return PyLong_FromLongLong(element_count(to_ints(self, "Size.numel")));
  });
}
PyObject* size_reduce(PyObject* self, PyObject*) {
  PyObject* list = PySequence_List(self);
  return list ? Py_BuildValue("O(N)", size_type, list) : nullptr;
}
PyMethodDef size_methods[] = {
    EAGER_NOARGS("numel", size_numel, "The number of elements of a tensor of this size."),
    EAGER_NOARGS("__reduce__", size_reduce, nullptr),
    {nullptr}};
PyType_Slot size_slots[] = {
    {Py_tp_repr, reinterpret_cast<void*>(size_repr)},
    {Py_tp_methods, size_methods},
    {Py_tp_doc, const_cast<char*>("Size(iterable)\n\nThe size of a tensor: a tuple of ints.")},
    {0, nullptr}};
PyType_Spec size_spec = {"eager.Size", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, size_slots};

PyTypeObject* make_type(PyObject* module, const char* attribute, PyType_Spec* spec,
                        PyTypeObject* base = nullptr) {
  Owned bases = base ? check(PyTuple_Pack(1, base)) : Owned();
  Owned type = check(PyType_FromSpecWithBases(spec, bases.get()));
  check_status(PyObject_SetAttrString(module, attribute, type.get()));
  return reinterpret_cast<PyTypeObject*>(type.release());
}

}  // namespace

void init_types(PyObject* module) {
  dtype_type = make_type(module, "dtype", &dtype_spec);
  device_type = make_type(module, "device", &device_spec);
  size_type = make_type(module, "Size", &size_spec, &PyTuple_Type);
  for (int i = 0; i < kDTypes; ++i) {
    PyDType* t = PyObject_New(PyDType, dtype_type);
    if (!t) throw PythonError();
    t->value = DType(i);
    dtypes[i] = reinterpret_cast<PyObject*>(t);
    check_status(PyObject_SetAttrString(module, kDTypeName[i], dtypes[i]));
  }
  for (int i = 0; i < 2; ++i) {
    PyDevice* d = PyObject_New(PyDevice, device_type);
    if (!d) throw PythonError();
    d->value = Device(i);
    devices[i] = reinterpret_cast<PyObject*>(d);
  }
}

PyObject* dtype_object(DType t) { return dtypes[int(t)]; }
PyObject* device_object(Device d) { return devices[int(d)]; }

Owned tuple_of(const Dims& values) {
  Owned tuple = check(PyTuple_New(Py_ssize_t(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), Py_ssize_t(i), check(PyLong_FromLongLong(values[i])).release());
  }
  return tuple;
}

Owned size_object(const Dims& shape) {
  Owned tuple = check(size_type->tp_alloc(size_type, Py_ssize_t(shape.size())));
  for (size_t i = 0; i < shape.size(); ++i) {
    PyTuple_SET_ITEM(tuple.get(), Py_ssize_t(i), check(PyLong_FromLongLong(shape[i])).release());
  }
  return tuple;
}

bool looks_like_dtype(PyObject* o) {
  PyTypeObject* t = reinterpret_cast<PyTypeObject*>(o);
  return is_dtype(o) || t == &PyFloat_Type || t == &PyLong_Type || t == &PyBool_Type;
}

bool wants_channels_last(const char* what, PyObject* o) {
  if (!o || o == Py_None) return false;
  Owned name(PyObject_GetAttrString(o, "name"));
  const char* text = name && PyUnicode_Check(name.get()) ? PyUnicode_AsUTF8(name.get()) : nullptr;
  PyErr_Clear();
  const std::string given = text ? text : Py_TYPE(o)->tp_name;
  if (given == "contiguous_format" || given == "preserve_format") return false;
  if (given == "channels_last") return true;
  fail(ErrorKind::value, what, "this is no memory format",
       "eager.contiguous_format, eager.preserve_format or eager.channels_last", given);
}

DType to_dtype(PyObject* o) {
  if (is_dtype(o)) return dtype_of(o);
  PyTypeObject* t = reinterpret_cast<PyTypeObject*>(o);
  if (t == &PyFloat_Type) return DType::f64;
  if (t == &PyLong_Type) return DType::i64;
  if (t == &PyBool_Type) return DType::b8;
  raise(PyExc_TypeError,
        std::string("expected an eager.dtype, such as eager.float32, not ") + Py_TYPE(o)->tp_name);
}

Device to_device(PyObject* o) {
  if (Py_TYPE(o) == device_type) return device_of(o);
  if (!PyUnicode_Check(o)) {
    raise(PyExc_TypeError,
          std::string("expected a device or its name, not ") + Py_TYPE(o)->tp_name);
  }
  const char* text = PyUnicode_AsUTF8(o);
  if (!text) throw PythonError();
  return device_named(text);
}

int64_t to_integer(PyObject* o, const char* what) {
  Owned index;
  if (!PyLong_Check(o)) {
    index = Owned(PyNumber_Index(o));
    if (!index) {
      // Errors of __index__ itself (a tensor with many elements) are kept.
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError();
      PyErr_Clear();
      raise(PyExc_TypeError, std::string(what) + ": expected an int, not " + Py_TYPE(o)->tp_name);
    }
    o = index.get();
  }
  int overflow;
  long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
  if (overflow) {
    Owned text = check(PyObject_Str(o));
    const char* digits = PyUnicode_AsUTF8(text.get());
    if (!digits) throw PythonError();
    fail(ErrorKind::value, what, "an integer does not fit in 64 bits",
         "a value from -2**63 to 2**63 - 1", digits);
  }
  if (v == -1 && PyErr_Occurred()) throw PythonError();
  return v;
}

double to_floating(PyObject* o, const char* what) {
  double v = PyFloat_AsDouble(o);
  if (v == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError();
    PyErr_Clear();
    raise(PyExc_TypeError, std::string(what) + ": expected a number, not " + Py_TYPE(o)->tp_name);
  }
  return v;
}

Dims to_ints(PyObject* o, const char* what) {
  Dims values;
  if (PyTuple_Check(o) || PyList_Check(o)) {
    // The list may change while an element's __index__ runs, so its size is read each time.
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); ++i) {
      Owned item = Owned::copy(PySequence_Fast_GET_ITEM(o, i));
      values.push_back(to_integer(item.get(), what));
    }
    return values;
  }
  Owned tuple(PySequence_Tuple(o));
  if (!tuple) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw PythonError();
    PyErr_Clear();
    raise(PyExc_TypeError,
          std::string(what) + ": expected a sequence of ints, not " + Py_TYPE(o)->tp_name);
  }
  return to_ints(tuple.get(), what);
}

Dims ints_or_sequence(PyObject* const* args, Py_ssize_t n, const char* what) {
  if (n == 1 && !PyLong_Check(args[0]) && !PyIndex_Check(args[0])) return to_ints(args[0], what);
  Dims values;
  for (Py_ssize_t i = 0; i < n; ++i) values.push_back(to_integer(args[i], what));
  return values;
}

}  // namespace eager::bind
