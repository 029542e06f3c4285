// Op calls from Python: the callable of an op, and the generic entries.
#include "op_function.h"

#include <cstddef>
#include <vector>

#include "convert.h"
#include "interpreter.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

struct OpFunction {
  PyObject_HEAD vectorcallfunc vectorcall;
  const Op* op;
  PyObject* object;  // the eager.op.Op
};
PyTypeObject* op_function_type;

OpFunction* as_self(PyObject* o) { return reinterpret_cast<OpFunction*>(o); }

bool is_scalar_expression(PyObject* o) {
  static PyObject* type;
  import_once(type, "eager.scalar", "Expr");
  return Py_TYPE(o) == reinterpret_cast<PyTypeObject*>(type);
}

// Inputs come first; what is left are attributes in the order of the schema, or by name.
PyObject* call_general(const OpFunction* self, PyObject* const* args, Py_ssize_t n,
                       PyObject* names) {
  const Op& op = *self->op;
  const bool variadic = op.inputs < 0;
  const Py_ssize_t inputs = variadic ? n : op.inputs;
  if (n < inputs) {
    raise(PyExc_TypeError, std::string(op.name) + ": expected " + std::to_string(inputs) +
                               " tensors, " + std::to_string(n) + " arguments were given");
  }
  Tensors in;
  for (Py_ssize_t i = 0; i < inputs; ++i) {
    TensorRef t;
    if (!to_operand(args[i], t)) {
      // While code is generated, bodies and gradients call ops on scalar expressions.
      for (Py_ssize_t k = 0; k < n; ++k) {
        if (is_scalar_expression(args[k])) {
          return PyObject_Vectorcall(self->object, args, size_t(n), names);
        }
      }
      raise(PyExc_TypeError, std::string(op.name) + ": expected a Tensor or a number, not " +
                                 Py_TYPE(args[i])->tp_name);
    }
    in.push_back(std::move(t));
  }
  Attrs attrs;
  const Py_ssize_t by_position = n - inputs;
  const Py_ssize_t by_name = names ? PyTuple_GET_SIZE(names) : 0;
  Py_ssize_t used = 0;
  for (Py_ssize_t i = 0; i < op.n_attrs; ++i) {
    PyObject* value = i < by_position ? args[inputs + i] : nullptr;
    for (Py_ssize_t k = 0; !value && k < by_name; ++k) {
      if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, k), op.attr_names[i]) == 0) {
        value = args[n + k];
      }
    }
    if (!value) {
      raise(PyExc_TypeError,
            std::string(op.name) + ": the attribute '" + op.attr_names[i] + "' is missing");
    }
    append_attribute(attrs, op.attr_types[i], value, op.name);
    ++used;
  }
  if (by_position + by_name > used) {
    raise(PyExc_TypeError, std::string(op.name) + ": takes " + std::to_string(op.n_attrs) +
                               " attributes, " + std::to_string(by_position + by_name) +
                               " were given");
  }
  return wrap_outputs(op, dispatch(op, in, attrs));
}

PyObject* op_call(PyObject* o, PyObject* const* args, size_t flags, PyObject* names) {
  return guarded([&]() -> PyObject* {
    const OpFunction* self = as_self(o);
    const Op& op = *self->op;
    const Py_ssize_t n = PyVectorcall_NARGS(flags);
    if (!names && op.n_attrs == 0 && op.outputs == 1 && n == op.inputs) {
      TensorRef a, b;
      if (n == 1 && to_operand(args[0], a)) return wrap(unary(op, a));
      if (n == 2 && to_operand(args[0], a) && to_operand(args[1], b)) {
        return wrap(binary(op, a, b));
      }
    }
    return call_general(self, args, n, names);
  });
}

void op_dealloc(PyObject* o) {
  Py_DECREF(as_self(o)->object);
  PyTypeObject* type = Py_TYPE(o);
  type->tp_free(o);
  Py_DECREF(type);
}

PyObject* op_repr(PyObject* o) { return PyUnicode_FromFormat("<op %s>", as_self(o)->op->name); }
PyObject* op_name(PyObject* o, void*) { return PyUnicode_FromString(as_self(o)->op->name); }

// Everything else is the definition's.
PyObject* op_getattro(PyObject* o, PyObject* name) {
  PyObject* found = PyObject_GenericGetAttr(o, name);
  if (found || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
  PyErr_Clear();
  return PyObject_GetAttr(as_self(o)->object, name);
}
int op_setattro(PyObject* o, PyObject* name, PyObject* value) {
  return PyObject_SetAttr(as_self(o)->object, name, value);
}

// As an attribute of a class an op is a method, as Python's functions are.
PyObject* op_descr_get(PyObject* o, PyObject* instance, PyObject*) {
  return instance ? PyMethod_New(o, instance) : Py_NewRef(o);
}

PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(OpFunction, vectorcall), READONLY, nullptr},
    {"op", T_OBJECT_EX, offsetof(OpFunction, object), READONLY, "The op's definition."},
    {nullptr}};
PyGetSetDef properties[] = {{"__name__", op_name, nullptr, nullptr, nullptr}, {nullptr}};
PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(op_dealloc)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_repr, reinterpret_cast<void*>(op_repr)},
    {Py_tp_descr_get, reinterpret_cast<void*>(op_descr_get)},
    {Py_tp_getattro, reinterpret_cast<void*>(op_getattro)},
    {Py_tp_setattro, reinterpret_cast<void*>(op_setattro)},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("Calls one op: function(*inputs, *attributes, **attributes).")},
    {0, nullptr}};
PyType_Spec spec = {"eager._C.OpFunction", sizeof(OpFunction), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
                        Py_TPFLAGS_DISALLOW_INSTANTIATION,
                    slots};

// The callable of a definition; None if the extension was built without the op.  The id of the
// definition becomes the extension's.
PyObject* make_op_function(PyObject*, PyObject* definition) {
  return guarded([&]() -> PyObject* {
    Owned name = check(PyObject_GetAttrString(definition, "name"));
    const char* text = PyUnicode_AsUTF8(name.get());
    if (!text) throw PythonError();
    const Op* op = find_op(text);
    if (!op) return none();
    Owned id = check(PyLong_FromLong(op->id));
    check_status(PyObject_SetAttrString(definition, "id", id.get()));
    define_op(*op, definition);
    OpFunction* self = PyObject_New(OpFunction, op_function_type);
    if (!self) throw PythonError();
    self->vectorcall = op_call;
    self->op = op;
    self->object = Py_NewRef(definition);
    return reinterpret_cast<PyObject*>(self);
  });
}

// --- generic entries -----------------------------------------------------------------------------

struct Call {
  const Op* op;
  Tensors in;
  Attrs attrs;
  TensorRef target;
  Tensors targets;  // of an update op, one per output
};

const Op& op_by_id(PyObject* o, const char* function) {
  int64_t id = to_integer(o, function);
  if (id < 0 || id >= op_count()) {
    fail(ErrorKind::index, function, "there is no op of this id",
         "an id below " + std::to_string(op_count()), std::to_string(id));
  }
  return op(uint16_t(id));
}

Call parse_call(const char* function, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  const Signature<4> signature{function, {"op_id", "inputs", "attrs", "target"}, 2};
  Arguments<4> a(signature, args, n, names);
  Call call{&op_by_id(a[0], function), {}, {}, {}, {}};
  call.in = operands(a[1], call.op->name);
  if (call.op->inputs >= 0 && call.in.size() != size_t(call.op->inputs)) {
    raise(PyExc_TypeError, std::string(call.op->name) + ": expected " +
                               std::to_string(call.op->inputs) + " inputs, " +
                               std::to_string(call.in.size()) + " were given");
  }
  call.attrs = attributes_from_dict(*call.op, a[2]);
  if (a.has(3) && PyTuple_Check(a[3])) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a[3]); ++i) {
      call.targets.push_back(expect_tensor(PyTuple_GET_ITEM(a[3], i), call.op->name));
    }
  } else if (a.has(3)) {
    call.target = expect_tensor(a[3], call.op->name);
  }
  return call;
}

PyObject* run(const Call& call) {
  if (!call.targets.empty()) {
    multi_update(*call.op, {call.in}, {call.targets});
    return wrap_tuple(call.targets).release();
  }
  return wrap_outputs(*call.op, dispatch(*call.op, call.in, call.attrs, call.target.get()));
}

PyObject* py_dispatch(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] { return run(parse_call("dispatch", args, n, names)); });
}

PyObject* py_execute(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    Call call = parse_call("execute", args, n, names);
    Beneath beneath;
    return run(call);
  });
}

PyObject* py_multi_update(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<3> signature{"multi_update", {"op_id", "inputs", "targets"}, 3};
    Arguments<3> a(signature, args, n, names);
    const Op& op = op_by_id(a[0], "multi_update");
    std::vector<Tensors> sets[2];
    for (int k = 0; k < 2; ++k) {
      Owned items = check(PySequence_Tuple(a[1 + k]));
      const Py_ssize_t count = PyTuple_GET_SIZE(items.get());
      sets[k].reserve(size_t(count));
      for (Py_ssize_t i = 0; i < count; ++i) {
        sets[k].push_back(operands(PyTuple_GET_ITEM(items.get(), i), op.name));
      }
    }
    multi_update(op, sets[0], sets[1]);
    return none();
  });
}

}  // namespace

void init_op_function(PyObject* module) {
  Owned type = check(PyType_FromSpec(&spec));
  check_status(PyObject_SetAttrString(module, "OpFunction", type.get()));
  op_function_type = reinterpret_cast<PyTypeObject*>(type.release());
}

PyMethodDef op_functions[] = {
    EAGER_ONE("make_op_function", make_op_function,
              "make_op_function(op)\n\nThe callable of an op's definition; None if the extension "
              "does not have the op."),
    EAGER_FAST("dispatch", py_dispatch,
               "dispatch(op_id, inputs, attrs=None, target=None)\n\nCalls an op."),
    EAGER_FAST("execute", py_execute,
               "execute(op_id, inputs, attrs=None, target=None)\n\nCalls an op beneath every "
               "interpreter."),
    EAGER_FAST("multi_update", py_multi_update,
               "multi_update(op_id, inputs, targets)\n\nRuns an update op on many sets of tensors "
               "in one call: the outputs for inputs[i] are written into targets[i]."),
    {nullptr}};

}  // namespace eager::bind
