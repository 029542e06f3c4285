// backward, grad mode, hooks, grad_fn objects and the nodes of custom functions.
#include "autograd.h"

#include <cctype>

#include "calls.h"
#include "convert.h"
#include "core/placement.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

// --- nodes as Python objects ---------------------------------------------------------------------

struct PyNode {
  PyObject_HEAD Ref<Node> node;
};
PyTypeObject* node_type;

const Ref<Node>& node_of(PyObject* o) { return reinterpret_cast<PyNode*>(o)->node; }

// "log_softmax" -> "LogSoftmaxBackward"; names that are capitalised stay.
std::string display_name(const Node& node) {
  std::string text = node.name();
  if (text.empty() || std::isupper(static_cast<unsigned char>(text[0]))) return text;
  std::string out;
  bool upper = true;
  for (char c : text) {
    if (c != '_') out += upper ? char(std::toupper(static_cast<unsigned char>(c))) : c;
    upper = c == '_';
  }
  return out + "Backward";
}

void node_dealloc(PyObject* o) {
  reinterpret_cast<PyNode*>(o)->node.~Ref();
  PyTypeObject* type = Py_TYPE(o);
  type->tp_free(o);
  Py_DECREF(type);
}
PyObject* node_name(PyObject* self, PyObject*) {
  return PyUnicode_FromString(display_name(*node_of(self)).c_str());
}
PyObject* node_repr(PyObject* self) {
  return PyUnicode_FromFormat("<%s>", display_name(*node_of(self)).c_str());
}
PyObject* node_next(PyObject* self, void*) {
  return guarded([&] {
    const auto& next = node_of(self)->next;
    Owned tuple = check(PyTuple_New(Py_ssize_t(next.size())));
    for (size_t i = 0; i < next.size(); ++i) {
      Owned node = check(node_object(next[i].node));
      PyTuple_SET_ITEM(tuple.get(), Py_ssize_t(i),
                       check(Py_BuildValue("(OI)", node.get(), next[i].output)).release());
    }
    return tuple.release();
  });
}
// Two objects of one node are equal.
PyObject* node_compare(PyObject* a, PyObject* b, int op) {
  if ((op != Py_EQ && op != Py_NE) || Py_TYPE(b) != node_type) Py_RETURN_NOTIMPLEMENTED;
  return PyBool_FromLong((node_of(a) == node_of(b)) == (op == Py_EQ));
}
Py_hash_t node_hash(PyObject* self) {
  return Py_hash_t(reinterpret_cast<uintptr_t>(node_of(self).get()) >> 4);
}

PyObject* node_released(PyObject* self, void*) { return PyBool_FromLong(node_of(self)->released); }

PyMethodDef node_methods[] = {EAGER_NOARGS("name", node_name, "Such as \"AddBackward\"."),
                              {nullptr}};
PyGetSetDef node_properties[] = {
    {"next_functions", node_next, nullptr,
     "For each input (node, which of its outputs), or (None, 0).", nullptr},
    {"released", node_released, nullptr, "Whether backward has freed what it saved.", nullptr},
    {nullptr}};
PyType_Slot node_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(node_dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(node_repr)},
    {Py_tp_richcompare, reinterpret_cast<void*>(node_compare)},
    {Py_tp_hash, reinterpret_cast<void*>(node_hash)},
    {Py_tp_methods, node_methods},
    {Py_tp_getset, node_properties},
    {Py_tp_doc, const_cast<char*>("An entry of the tape: what computes a tensor's gradient.")},
    {0, nullptr}};
PyType_Spec node_spec = {"eager._C.Node", sizeof(PyNode), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, node_slots};

// --- custom functions ----------------------------------------------------------------------------

// The node of an autograd.Function call.  Its context object holds what forward saved.
struct PyFunctionNode final : Node {
  std::string label;
  PyObject* context;  // owned
  bool materialize;   // absent gradients are passed as zeros

  PyFunctionNode(std::string label, PyObject* context, bool materialize)
      : label(std::move(label)), context(Py_NewRef(context)), materialize(materialize) {}
  ~PyFunctionNode() override {
    Gil gil;
    Py_DECREF(context);
  }
  const char* name() const override { return label.c_str(); }

  Tensors apply(Tensors grads, bool) override {
    static PyObject* method = interned("_backward").release();
    Gil gil;
    for (size_t i = 0; materialize && i < grads.size(); ++i) {
      if (!grads[i]) grads[i] = full(outputs[i].shape, 0, outputs[i].dtype);
    }
    Owned arguments = wrap_tuple(grads);
    Owned node = check(node_object(Ref<Node>(this)));
    PyObject* stack[] = {context, node.get(), arguments.get()};
    Owned result =
        check(run_python([&] { return PyObject_VectorcallMethod(method, stack, 3, nullptr); }));
    if (!PyTuple_Check(result.get()) || PyTuple_GET_SIZE(result.get()) != Py_ssize_t(next.size())) {
      raise(PyExc_TypeError, label + ": _backward must give one gradient or None for each input");
    }
    Tensors out;
    for (size_t i = 0; i < next.size(); ++i) {
      PyObject* g = PyTuple_GET_ITEM(result.get(), Py_ssize_t(i));
      out.push_back(g == Py_None ? TensorRef() : expect_tensor(g, label.c_str()));
    }
    return out;
  }

  void release() override {
    Gil gil;
    PyObject* done = run_python([&] { return PyObject_CallMethod(context, "_release", nullptr); });
    if (!done) PyErr_WriteUnraisable(context);
    Py_XDECREF(done);
  }
};

// record_function(context, name, inputs, outputs, differentiable, materialize)
PyObject* record_function(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<6> signature{
        "record_function",
        {"context", "name", "inputs", "outputs", "differentiable", "materialize"},
        6};
    Arguments<6> a(signature, args, n, names);
    const char* label = PyUnicode_AsUTF8(a[1]);
    if (!label) throw PythonError();
    Ref<Node> node(new PyFunctionNode(label, a[0], a.truth(5)));
    Owned inputs = check(PySequence_Tuple(a[2]));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(inputs.get()); ++i) {
      PyObject* x = PyTuple_GET_ITEM(inputs.get(), i);
      node->next.push_back(x == Py_None ? Edge() : gradient_edge(*expect_tensor(x, label)));
    }
    Owned outputs = check(PySequence_Tuple(a[3]));
    Owned flags = check(PySequence_Tuple(a[4]));
    if (PyTuple_GET_SIZE(outputs.get()) != PyTuple_GET_SIZE(flags.get())) {
      raise(PyExc_ValueError, "record_function: one flag for each output is needed");
    }
    Tensors made;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(outputs.get()); ++i) {
      PyObject* y = PyTuple_GET_ITEM(outputs.get(), i);
      TensorRef t = expect_tensor(y, label);
      const int differentiable = PyObject_IsTrue(PyTuple_GET_ITEM(flags.get(), i));
      check_status(differentiable);
      if (differentiable) {
        track(y);  // the context may refer to the output
        made.push_back(t);
      } else {
        made.push_back(TensorRef());
      }
    }
    set_history(made, node);
    return none();
  });
}

// An alias of a saved output that has its history again.
PyObject* with_history(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<3> signature{"with_history", {"tensor", "node", "output"}, 3};
    Arguments<3> a(signature, args, n, names);
    const TensorRef& t = expect_tensor(a[0], "with_history");
    if (Py_TYPE(a[1]) != node_type) raise(PyExc_TypeError, "with_history: expected a Node");
    const int64_t output = to_integer(a[2], "with_history");
    if (output < 0 || output >= int64_t(node_of(a[1])->outputs.size())) {
      raise(PyExc_IndexError, "with_history: the node has no such output");
    }
    TensorRef alias = Tensor::view(*t, t->shape, t->strides, t->offset);
    alias->is_view = false;
    alias->meta().node = node_of(a[1]);
    alias->meta().output = uint32_t(output);
    return wrap(alias);
  });
}

// --- backward ------------------------------------------------------------------------------------

TensorRef seed_of(const TensorRef& y, PyObject* given) {
  if (given && given != Py_None) {
    TensorRef seed = operand(given, "backward");
    if (!(seed->shape == y->shape)) {
      fail(ErrorKind::shape, "backward", "the gradient's shape differs from the tensor's",
           to_string(y->shape), to_string(seed->shape));
    }
    return to_dtype(seed, y->dtype);
  }
  return TensorRef();  // 1, if there is one element
}

PyObject* backward(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<4> signature{
        "backward", {"gradient", "retain_graph", "create_graph", "inputs"}, 0};
    Arguments<4> a(signature, args, n, names);
    const bool create_graph = a.truth(2);
    Tensors inputs;
    if (a.has(3)) {
      if (is_tensor(a[3])) {
        inputs.push_back(tensor_of(a[3]));
      } else {
        inputs = operands(a[3], "backward");
      }
      if (inputs.empty()) raise(PyExc_ValueError, "backward: inputs must not be empty");
    }
    const TensorRef& y = tensor_of(self);
    run_backward({y}, {seed_of(y, a[0])}, inputs, a.truth(1, create_graph), create_graph, true);
    return none();
  });
}

// run_backward(tensors, seeds, inputs, retain_graph, create_graph, accumulate)
PyObject* py_run_backward(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<6> signature{
        "run_backward",
        {"tensors", "seeds", "inputs", "retain_graph", "create_graph", "accumulate"},
        6};
    Arguments<6> a(signature, args, n, names);
    Owned outputs = check(PySequence_Tuple(a[0]));
    Owned seeds = check(PySequence_Tuple(a[1]));
    if (PyTuple_GET_SIZE(outputs.get()) != PyTuple_GET_SIZE(seeds.get())) {
      fail(ErrorKind::value, "backward", "the number of gradients differs from that of tensors",
           std::to_string(PyTuple_GET_SIZE(outputs.get())) + " gradients, each may be None",
           std::to_string(PyTuple_GET_SIZE(seeds.get())));
    }
    Tensors ys, gs;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(outputs.get()); ++i) {
      ys.push_back(expect_tensor(PyTuple_GET_ITEM(outputs.get(), i), "backward"));
      gs.push_back(seed_of(ys.back(), PyTuple_GET_ITEM(seeds.get(), i)));
    }
    Tensors inputs;
    Owned wanted = check(PySequence_Tuple(a[2]));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(wanted.get()); ++i) {
      inputs.push_back(expect_tensor(PyTuple_GET_ITEM(wanted.get(), i), "grad"));
    }
    Tensors grads = run_backward(ys, gs, inputs, a.truth(3), a.truth(4), a.truth(5));
    return wrap_tuple(grads).release();
  });
}

// --- requires_grad, hooks, grad mode -------------------------------------------------------------

PyObject* requires_grad_(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"requires_grad_", {"requires_grad"}, 0};
    Arguments<1> a(signature, args, n, names);
    set_requires_grad(tensor_of(self), a.truth(0, true));
    return Py_NewRef(self);
  });
}

PyObject* retain_grad_method(PyObject* self, PyObject*) {
  return guarded([&] {
    retain_grad(*tensor_of(self));
    return none();
  });
}

TensorRef run_hook(void* context, const TensorRef& grad) {
  Gil gil;
  Owned hook = Owned::copy(static_cast<PyObject*>(context));  // it may remove itself
  Owned argument = check(wrap(grad));
  Owned result = check(run_python([&] { return PyObject_CallOneArg(hook.get(), argument.get()); }));
  return result.get() == Py_None ? TensorRef() : expect_tensor(result.get(), "hook");
}
void drop_hook(void* context) {
  Gil gil;
  Py_DECREF(static_cast<PyObject*>(context));
}

PyObject* add_hook_method(PyObject* self, PyObject* function) {
  return guarded([&] {
    Owned kept = Owned::copy(function);
    uint64_t id = add_hook(*tensor_of(self), run_hook, function, drop_hook);
    kept.release();
    track(self);  // the hook may refer to the tensor
    return PyLong_FromUnsignedLongLong(id);
  });
}
PyObject* add_after_hook_method(PyObject* self, PyObject* function) {
  return guarded([&] {
    Owned kept = Owned::copy(function);
    const HookFn call = [](void* context, const TensorRef& leaf) {
      run_hook(context, leaf);
      return TensorRef();
    };
    uint64_t id = add_after_hook(*tensor_of(self), call, function, drop_hook);
    kept.release();
    track(self);
    return PyLong_FromUnsignedLongLong(id);
  });
}

PyObject* set_grad_buffer_method(PyObject* self, PyObject* view) {
  return guarded([&] {
    const bool none_given = view == Py_None;
    set_grad_buffer(*tensor_of(self),
                    none_given ? TensorRef() : expect_tensor(view, "set_grad_buffer"));
    return none();
  });
}
PyObject* grad_buffer(PyObject* self, PyObject*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    const GradBuffer* b = t->autograd ? t->autograd->buffer.get() : nullptr;
    return wrap(b ? b->view : TensorRef());
  });
}
PyObject* grad_buffer_counts(PyObject* self, PyObject*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    const GradBuffer* b = t->autograd ? t->autograd->buffer.get() : nullptr;
    return Py_BuildValue("(KK)", b ? b->placed : 0ull, b ? b->copied : 0ull);
  });
}

PyObject* py_after_backward(PyObject*, PyObject* function) {
  return guarded([&] {
    Owned kept = Owned::copy(function);
    after_backward(
        [](void* context) {
          Gil gil;
          Owned f = Owned::copy(static_cast<PyObject*>(context));
          check(run_python([&] { return PyObject_CallNoArgs(f.get()); }));
        },
        function, drop_hook);
    kept.release();
    return none();
  });
}

PyObject* py_remove_hook(PyObject*, PyObject* id) {
  return guarded([&] {
    remove_hook(uint64_t(to_integer(id, "remove_hook")));
    return none();
  });
}

PyObject* is_grad_enabled(PyObject*, PyObject*) { return PyBool_FromLong(grad_enabled()); }
PyObject* set_grad_mode(PyObject*, PyObject* on) {
  int truth = PyObject_IsTrue(on);
  if (truth < 0) return nullptr;
  bool before = grad_enabled();
  set_grad_enabled(truth != 0);
  return PyBool_FromLong(before);
}

}  // namespace

int traverse_history(const Tensor& t, visitproc visit, void* arg) {
  if (!t.autograd) return 0;
  for (const Ref<Node>* node : {&t.autograd->node, &t.autograd->accumulator}) {
    if (!node->unique()) continue;  // the tape keeps what it holds alive
    auto* function = dynamic_cast<PyFunctionNode*>(node->get());
    if (function) Py_VISIT(function->context);
    for (void* hook : hook_contexts(**node)) Py_VISIT(static_cast<PyObject*>(hook));
  }
  return 0;
}

void set_requires_grad(const TensorRef& t, bool value) {
  if (t->requires_grad() == value) return;
  if (value && !is_floating(t->dtype)) {
    fail(ErrorKind::dtype, "requires_grad", "only floating tensors have gradients",
         "a floating dtype", name(t->dtype), "x.float()");
  }
  if (!value && t->autograd->node) {
    fail(ErrorKind::autograd, "requires_grad", "the tensor is not a leaf", "a leaf tensor",
         "the result of " + std::string(t->autograd->node->name()), "x.detach()");
  }
  t->meta().requires_grad = value;
}

PyObject* node_object(const Ref<Node>& node) {
  if (!node) Py_RETURN_NONE;
  PyNode* self = PyObject_New(PyNode, node_type);
  if (!self) return nullptr;
  new (&self->node) Ref<Node>(node);
  return reinterpret_cast<PyObject*>(self);
}

void init_autograd(PyObject* module) {
  Owned type = check(PyType_FromSpec(&node_spec));
  check_status(PyObject_SetAttrString(module, "Node", type.get()));
  node_type = reinterpret_cast<PyTypeObject*>(type.release());
}

PyMethodDef autograd_methods[] = {
    EAGER_FAST("backward", backward,
               "backward(gradient=None, retain_graph=None, create_graph=False, inputs=None)\n\n"
               "Adds the gradients of this tensor to the .grad of the leaves it was computed "
               "from, or of `inputs`."),
    EAGER_FAST("requires_grad_", requires_grad_,
               "requires_grad_(requires_grad=True)\n\nWhether gradients are wanted."),
    EAGER_NOARGS("retain_grad", retain_grad_method, "Makes backward keep .grad of a non-leaf."),
    EAGER_ONE("_add_hook", add_hook_method, nullptr),
    EAGER_ONE("_add_after_hook", add_after_hook_method, nullptr),
    EAGER_ONE("_set_grad_buffer", set_grad_buffer_method,
              "_set_grad_buffer(view)\n\nThe first gradient of this leaf shall be computed into "
              "`view`, which becomes .grad; None ends this."),
    EAGER_NOARGS("_grad_buffer", grad_buffer, "What _set_grad_buffer was given, or None."),
    EAGER_NOARGS("_grad_buffer_counts", grad_buffer_counts,
                 "How many first gradients were computed into the buffer, and how many were "
                 "computed elsewhere and copied."),
    {nullptr}};

PyMethodDef autograd_functions[] = {
    EAGER_FAST("run_backward", py_run_backward,
               "run_backward(tensors, seeds, inputs, retain_graph, create_graph, accumulate)"),
    EAGER_FAST("record_function", record_function,
               "record_function(context, name, inputs, outputs, differentiable, materialize)"),
    EAGER_FAST("with_history", with_history, "with_history(tensor, node, output)"),
    EAGER_ONE("remove_hook", py_remove_hook, "remove_hook(id)"),
    EAGER_ONE("after_backward", py_after_backward,
              "after_backward(function)\n\nCalls it when the backward that is running on this "
              "thread has walked the tape; not if that fails."),
    EAGER_NOARGS("is_grad_enabled", is_grad_enabled, "Whether ops are recorded on the tape."),
    EAGER_ONE("set_grad_mode", set_grad_mode, "Sets grad mode; returns what it was."),
    {nullptr}};

}  // namespace eager::bind
