// The interpreter hook, and the callbacks by which the core runs Python.
#include "interpreter.h"

#include "convert.h"
#include "core/pool.h"
#include "tensor.h"

namespace eager::bind {
namespace {

Tensors unwrap_results(const Op& op, PyObject* result) {
  Tensors out;
  if (op.outputs == 1 && is_tensor(result)) {
    out.push_back(tensor_of(result));
    return out;
  }
  if (!PyTuple_Check(result) && !PyList_Check(result)) {
    raise(PyExc_TypeError, std::string(op.name) + ": an implementation returned " +
                               Py_TYPE(result)->tp_name + ", expected a Tensor or a tuple");
  }
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(result); ++i) {
    out.push_back(expect_tensor(PySequence_Fast_GET_ITEM(result, i), op.name));
  }
  return out;
}

// Calls object.method(*arguments); the names are interned once by the caller.
template <class... A>
Owned call_method(PyObject* object, PyObject* method, A... arguments) {
  PyObject* stack[] = {object, arguments...};
  return check(PyObject_VectorcallMethod(method, stack,
                                         (sizeof...(A) + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                         nullptr));
}

// One per thread: stands in dispatch while that thread has an interpreter.
struct PythonRecorder final : Recorder {
  Owned object;

  Tensors process(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* target) override {
    Gil gil;
    Owned into = target ? check(wrap(TensorRef(target))) : Owned::copy(Py_None);
    return unwrap_results(op, call(op, in, attrs, into.get()).get());
  }

  // Each set of tensors is one call, whose target is the tuple of its targets.
  void process_multi(const Op& op, const std::vector<Tensors>& inputs,
                     const std::vector<Tensors>& targets) override {
    Gil gil;
    for (size_t i = 0; i < inputs.size(); ++i) {
      call(op, inputs[i], Attrs(), wrap_tuple(targets[i]).get());
    }
  }

  void grad_written(Tensor& leaf) override {
    Gil gil;
    Owned tensor = check(wrap(TensorRef(&leaf)));
    Owned value = check(wrap(leaf.autograd ? leaf.autograd->grad : TensorRef()));
    tell_grad(tensor.get(), value.get(), true);
  }

 private:
  Owned call(const Op& op, const Tensors& in, const Attrs& attrs, PyObject* target) {
    static PyObject* method = interned("process").release();
    Owned self = object;  // the call may install another
    Beneath beneath;
    Owned inputs = wrap_tuple(in);
    Owned values = attributes_to_dict(op, attrs);
    return call_method(self.get(), method, python_op(op).object, inputs.get(), values.get(),
                       target);
  }
};

PythonRecorder& this_thread() {
  // Never destroyed: a thread may end after the Python runtime has.
  static thread_local PythonRecorder* instance = new PythonRecorder;
  return *instance;
}

// --- what the core calls back --------------------------------------------------------------------

Tensors run_foreign(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  static PyObject* impl = interned("impl").release();
  static PyObject* infer = interned("infer").release();
  Gil gil;
  bool meta = false;
  for (const TensorRef& t : in) meta |= t->device == Device::meta;
  Owned f = check(PyObject_GetAttr(python_op(op).object, meta ? infer : impl));
  Owned args = wrap_tuple(in);
  Owned kwargs = attributes_to_dict(op, attrs);
  Beneath beneath;
  NoGrad no_grad;
  Owned result = check(PyObject_Call(f.get(), args.get(), kwargs.get()));
  return unwrap_results(op, result.get());
}

// Op.selective: whether the vjp takes `needs`.  Asked once per op.
bool is_selective(const Op& op) {
  static std::vector<int8_t> known(size_t(op_count()), -1);
  int8_t& answer = known[op.id];
  if (answer < 0) {
    Owned flag = check(PyObject_GetAttrString(python_op(op).object, "selective"));
    answer = flag.get() == Py_True;
  }
  return answer;
}

Tensors call_vjp(const Op& op, const Tensors& grads, const Tensors& outputs, const Tensors& inputs,
                 const Attrs& attrs) {
  static PyObject* vjp = interned("vjp").release();
  Gil gil;
  Owned f = check(PyObject_GetAttr(python_op(op).object, vjp));
  Owned args = check(PyTuple_New(Py_ssize_t(2 + inputs.size())));
  auto both = [&](const Tensors& ts) {
    return op.outputs == 1 ? check(wrap(ts[0])) : wrap_tuple(ts);
  };
  PyTuple_SET_ITEM(args.get(), 0, both(grads).release());
  PyTuple_SET_ITEM(args.get(), 1, both(outputs).release());
  for (size_t i = 0; i < inputs.size(); ++i) {
    PyTuple_SET_ITEM(args.get(), Py_ssize_t(2 + i), check(wrap(inputs[i])).release());
  }
  const bool selective = is_selective(op);
  Owned kwargs = op.n_attrs || selective ? attributes_to_dict(op, attrs) : Owned();
  if (selective) {
    const uint32_t wanted = vjp_needs();
    Owned needs = check(PyTuple_New(Py_ssize_t(inputs.size())));
    for (size_t i = 0; i < inputs.size(); ++i) {
      const bool need = i >= 32 || (wanted >> i & 1);
      PyTuple_SET_ITEM(needs.get(), Py_ssize_t(i), PyBool_FromLong(need));
    }
    check_status(PyDict_SetItemString(kwargs.get(), "needs", needs.get()));
  }
  Owned result = check(PyObject_Call(f.get(), args.get(), kwargs.get()));
  if (!PyTuple_Check(result.get()) || PyTuple_GET_SIZE(result.get()) != Py_ssize_t(inputs.size())) {
    raise(PyExc_TypeError, std::string(op.name) + ": the vjp must return a tuple of " +
                               std::to_string(inputs.size()) + " gradients");
  }
  Tensors out;
  for (size_t i = 0; i < inputs.size(); ++i) {
    PyObject* g = PyTuple_GET_ITEM(result.get(), Py_ssize_t(i));
    out.push_back(g == Py_None ? TensorRef() : operand(g, op.name));
  }
  return out;
}

void* release_lock() { return PyGILState_Check() ? PyEval_SaveThread() : nullptr; }
void retake_lock(void* state) { PyEval_RestoreThread(static_cast<PyThreadState*>(state)); }

PyObject* install_interpreter(PyObject*, PyObject* object) {
  return guarded([&] {
    PythonRecorder& mine = this_thread();
    bool on = object != Py_None;
    mine.object = on ? Owned::copy(object) : Owned();
    recorder = on ? &mine : nullptr;
    return none();
  });
}

}  // namespace

PyObject* interpreter() {
  PythonRecorder& mine = this_thread();
  return recorder == &mine ? mine.object.get() : nullptr;
}

void tell_read(PyObject* tensor, PyObject* value) {
  static PyObject* method = interned("read").release();
  if (!recorder || !interpreter()) return;
  Owned self = Owned::copy(interpreter());
  Beneath beneath;
  call_method(self.get(), method, tensor, value);
}

void tell_create(PyObject* tensor, PyObject* data) {
  static PyObject* method = interned("create").release();
  if (!recorder || !interpreter()) return;
  Owned self = Owned::copy(interpreter());
  Beneath beneath;
  call_method(self.get(), method, tensor, data);
}

void tell_grad(PyObject* tensor, PyObject* value, bool written) {
  static PyObject* method = interned("grad").release();
  if (!recorder || !interpreter()) return;
  Owned self = Owned::copy(interpreter());
  Beneath beneath;
  call_method(self.get(), method, tensor, value, written ? Py_True : Py_False);
}

void init_interpreter() {
  foreign_kernel = run_foreign;
  vjp_callback = call_vjp;
  long_work_hooks = {release_lock, retake_lock};
}

PyMethodDef interpreter_functions[] = {
    EAGER_ONE("install_interpreter", install_interpreter,
              "install_interpreter(interpreter)\n\nMakes it see this thread's op calls; None: "
              "nothing does."),
    {nullptr}};

}  // namespace eager::bind
