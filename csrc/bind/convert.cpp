// Operands and attributes: Python values to core values and back.
#include "convert.h"

#include <vector>

#include "interchange.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {

KnownOps known;

namespace {

std::vector<PyOp> python_ops;  // by op id

}  // namespace

void define_op(const Op& op, PyObject* object) {
  if (python_ops.empty()) python_ops.resize(size_t(op_count()));
  Owned names = op.n_attrs ? check(PyTuple_New(op.n_attrs)) : Owned();
  for (int i = 0; i < op.n_attrs; ++i) {
    PyTuple_SET_ITEM(names.get(), i, interned(op.attr_names[i]).release());
  }
  python_ops[op.id] = {&op, Py_NewRef(object), names.release()};
}

const PyOp& python_op(const Op& op) {
  if (op.id >= python_ops.size() || !python_ops[op.id].op) {
    fail(ErrorKind::internal, op.name, "the op has no definition in Python",
         "eager.ops to be imported first", "an empty entry in the registry");
  }
  return python_ops[op.id];
}

void find_known_ops() {
  std::string missing;
  auto find = [&](const char* name) {
    const Op* found = find_op(name);
    if (!found) missing += std::string(missing.empty() ? "" : ", ") + name;
    return found;
  };
#define X(name) known.name = find(#name);
  EAGER_OPS(X)
#undef X
  if (!missing.empty()) {
    raise(PyExc_ImportError, "the extension's op table lacks " + missing + "; reinstall eager-jit");
  }
}

// --- operands ------------------------------------------------------------------------------------

namespace {

// NumPy's types, known once NumPy has been imported by anyone: before that, nothing is of them.
struct NumPyTypes {
  PyObject* generic = nullptr;
  PyObject* array = nullptr;
};
const NumPyTypes& numpy_types() {
  static NumPyTypes types;
  if (!types.array) {
    PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "numpy");
    // While NumPy is itself being imported it has no attributes yet.
    if (module && PyObject_HasAttrString(module, "ndarray")) {
      types.generic = check(PyObject_GetAttrString(module, "generic")).release();
      types.array = check(PyObject_GetAttrString(module, "ndarray")).release();
    }
  }
  return types;
}

bool is_instance(PyObject* o, PyObject* type) {
  return type && PyType_IsSubtype(Py_TYPE(o), reinterpret_cast<PyTypeObject*>(type));
}

// The kind of a NumPy scalar: 'b', 'i', 'u', 'f', or 'V' for the types of ml_dtypes.
Py_UCS4 numpy_kind(PyObject* scalar) {
  Owned dtype = check(PyObject_GetAttrString(scalar, "dtype"));
  Owned kind = check(PyObject_GetAttrString(dtype.get(), "kind"));
  if (!PyUnicode_Check(kind.get())) return 0;
  return PyUnicode_GET_LENGTH(kind.get()) == 1 ? PyUnicode_READ_CHAR(kind.get(), 0) : 0;
}

bool numpy_operand(PyObject* o, TensorRef& out) {
  const NumPyTypes& types = numpy_types();
  if (is_instance(o, types.array)) {
    out = tensor_from_array(o);
    return true;
  }
  if (!is_instance(o, types.generic)) return false;
  switch (numpy_kind(o)) {
    case 'b': {
      const int truth = PyObject_IsTrue(o);
      check_status(truth);
      out = Tensor::scalar(truth != 0);
      return true;
    }
    case 'i':
    case 'u':
      out = Tensor::scalar(to_integer(o, "operand"));
      return true;
    case 'f':
    case 'V':
      out = Tensor::scalar(to_floating(o, "operand"));
      return true;
    default:
      return false;
  }
}

}  // namespace

bool to_operand(PyObject* o, TensorRef& out) {
  if (is_tensor(o)) {
    out = tensor_of(o);
  } else if (PyFloat_Check(o)) {
    out = Tensor::scalar(PyFloat_AS_DOUBLE(o));
  } else if (PyBool_Check(o)) {
    out = Tensor::scalar(o == Py_True);
  } else if (PyLong_Check(o)) {
    out = Tensor::scalar(to_integer(o, "operand"));
  } else {
    return numpy_operand(o, out);
  }
  return true;
}

bool is_number(PyObject* o) {
  return PyFloat_Check(o) || PyLong_Check(o) || is_instance(o, numpy_types().generic);
}

TensorRef operand(PyObject* o, const char* what) {
  TensorRef t;
  if (!to_operand(o, t)) {
    raise(PyExc_TypeError,
          std::string(what) + ": expected a Tensor or a number, not " + Py_TYPE(o)->tp_name);
  }
  return t;
}

Tensors operands(PyObject* sequence, const char* what) {
  Owned items = check(PySequence_Tuple(sequence));
  Tensors all;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.get()); ++i) {
    all.push_back(operand(PyTuple_GET_ITEM(items.get(), i), what));
  }
  return all;
}

// --- attributes ----------------------------------------------------------------------------------

void append_attribute(Attrs& attrs, AttrType type, PyObject* value, const char* what) {
  switch (type) {
    case AttrType::integer:
      attrs.integer(to_integer(value, what));
      break;
    case AttrType::boolean: {
      int truth = PyObject_IsTrue(value);
      check_status(truth);
      attrs.integer(truth);
      break;
    }
    case AttrType::floating:
      attrs.floating(to_floating(value, what));
      break;
    case AttrType::ints:
      attrs.ints(to_ints(value, what));
      break;
    case AttrType::dtype:
      attrs.integer(int64_t(to_dtype(value)));
      break;
  }
}

Attrs attributes_from_dict(const Op& op, PyObject* dict) {
  Attrs attrs;
  Py_ssize_t given = dict && dict != Py_None ? PyDict_Size(dict) : 0;
  if (given < 0) throw PythonError();
  if (given != op.n_attrs) {
    raise(PyExc_TypeError, std::string(op.name) + ": expected " + std::to_string(op.n_attrs) +
                               " attributes, " + std::to_string(given) + " were given");
  }
  for (int i = 0; i < op.n_attrs; ++i) {
    PyObject* value = PyDict_GetItemString(dict, op.attr_names[i]);
    if (!value) {
      raise(PyExc_TypeError,
            std::string(op.name) + ": the attribute '" + op.attr_names[i] + "' is missing");
    }
    append_attribute(attrs, op.attr_types[i], value, op.name);
  }
  return attrs;
}

Small<Owned, 4> attribute_values(const Op& op, const Attrs& attrs) {
  Small<Owned, 4> values;
  AttrReader reader(attrs);
  for (int i = 0; i < op.n_attrs; ++i) {
    Owned value;
    switch (op.attr_types[i]) {
      case AttrType::integer:
        value = check(PyLong_FromLongLong(reader.integer()));
        break;
      case AttrType::boolean:
        value = check(PyBool_FromLong(reader.boolean()));
        break;
      case AttrType::floating:
        value = check(PyFloat_FromDouble(reader.floating()));
        break;
      case AttrType::ints:
        value = tuple_of(reader.ints());
        break;
      case AttrType::dtype:
        value = Owned::copy(dtype_object(reader.dtype()));
        break;
    }
    values.push_back(std::move(value));
  }
  return values;
}

Owned attributes_to_dict(const Op& op, const Attrs& attrs) {
  Owned dict = check(PyDict_New());
  const auto values = attribute_values(op, attrs);
  for (int i = 0; i < op.n_attrs; ++i) {
    PyObject* name = PyTuple_GET_ITEM(python_op(op).names, i);
    check_status(PyDict_SetItem(dict.get(), name, values[size_t(i)].get()));
  }
  return dict;
}

}  // namespace eager::bind
