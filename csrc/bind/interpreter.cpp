// The interpreter hook, and the callbacks by which the core runs Python.
#include "interpreter.h"

#include <pthread.h>

#include <vector>

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
  if (op.outputs > 0 && out.size() != size_t(op.outputs)) {
    raise(PyExc_TypeError, std::string(op.name) + ": an implementation returned " +
                               std::to_string(out.size()) + " tensors, expected " +
                               std::to_string(op.outputs));
  }
  return out;
}

// Calls object.method(*arguments); the names are interned once by the caller.
template <class... A>
Owned call_method(PyObject* object, PyObject* method, A... arguments) {
  PyObject* stack[] = {object, arguments...};
  return check(run_python([&] {
    return PyObject_VectorcallMethod(method, stack,
                                     (sizeof...(A) + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  }));
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

// f(*args, **attributes); `names` are the attributes' names, then that of `extra` if it is given.
Owned call_with_attributes(PyObject* f, Small<Owned, 8> args, const Op& op, const Attrs& attrs,
                           PyObject* names, Owned extra = Owned()) {
  const size_t positional = args.size();
  for (Owned& value : attribute_values(op, attrs)) args.push_back(std::move(value));
  if (extra) args.push_back(std::move(extra));
  Small<PyObject*, 8> stack;
  for (const Owned& o : args) stack.push_back(o.get());
  return check(run_python([&] { return PyObject_Vectorcall(f, stack.data(), positional, names); }));
}

Tensors run_foreign(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  static PyObject* impl = interned("impl").release();
  static PyObject* infer = interned("infer").release();
  Gil gil;
  bool meta = false;
  for (const TensorRef& t : in) meta |= t->device == Device::meta;
  Owned f = check(PyObject_GetAttr(python_op(op).object, meta ? infer : impl));
  Beneath beneath;
  NoGrad no_grad;
  Small<Owned, 8> args;
  for (const TensorRef& t : in) args.push_back(check(wrap(t)));
  PyObject* names = python_op(op).names;
  return unwrap_results(op, call_with_attributes(f.get(), std::move(args), op, attrs, names).get());
}

// For a vjp that takes `needs` (Op.selective), the attributes' names and that one; else null.
PyObject* selective_names(const Op& op) {
  struct Answer {
    bool known = false;
    PyObject* names = nullptr;
  };
  static std::vector<Answer> answers{size_t(op_count())};
  Answer& answer = answers[op.id];
  if (!answer.known) {
    Owned flag = check(PyObject_GetAttrString(python_op(op).object, "selective"));
    if (flag.get() == Py_True) {
      Owned last = check(PyTuple_Pack(1, interned("needs").get()));
      PyObject* names = python_op(op).names;
      answer.names = names ? check(PySequence_Concat(names, last.get())).release() : last.release();
    }
    answer.known = true;
  }
  return answer.names;
}

// One bool per input: whether backward wants its gradient.
Owned wanted_gradients(size_t inputs) {
  const uint32_t wanted = vjp_needs();
  Owned needs = check(PyTuple_New(Py_ssize_t(inputs)));
  for (size_t i = 0; i < inputs; ++i) {
    const bool need = i >= 32 || (wanted >> i & 1);
    PyTuple_SET_ITEM(needs.get(), Py_ssize_t(i), PyBool_FromLong(need));
  }
  return needs;
}

Tensors call_vjp(const Op& op, const Tensors& grads, const Tensors& outputs, const Tensors& inputs,
                 const Attrs& attrs) {
  static PyObject* vjp = interned("vjp").release();
  Gil gil;
  Owned f = check(PyObject_GetAttr(python_op(op).object, vjp));
  Small<Owned, 8> args;
  for (const Tensors* ts : {&grads, &outputs}) {
    args.push_back(op.outputs == 1 ? check(wrap((*ts)[0])) : wrap_tuple(*ts));
  }
  for (const TensorRef& t : inputs) args.push_back(check(wrap(t)));
  PyObject* selective = selective_names(op);
  Owned result = call_with_attributes(f.get(), std::move(args), op, attrs,
                                      selective ? selective : python_op(op).names,
                                      selective ? wanted_gradients(inputs.size()) : Owned());
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

// Kernels that run without the interpreter lock, and the memory that tensors gave up meanwhile.
// Both are guarded by the lock.
int unlocked_kernels = 0;
std::vector<Ref<Storage>> retired;

void* release_lock() {
  if (!PyGILState_Check()) return nullptr;
  ++unlocked_kernels;
  return PyEval_SaveThread();
}
void retake_lock(void* state) {
  run_python([&] {
    PyEval_RestoreThread(static_cast<PyThreadState*>(state));
    return 0;
  });
  if (--unlocked_kernels == 0 && !retired.empty()) {
    const auto last = std::exchange(retired, {});
  }
}

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

void retire(Ref<Storage> storage) {
  if (unlocked_kernels) retired.push_back(std::move(storage));
}

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
  vjp_selects = [](const Op& op) { return selective_names(op) != nullptr; };
  long_work_hooks = {release_lock, retake_lock};
  // A forked child has none of the threads that ran kernels.
  pthread_atfork(nullptr, nullptr, [] { unlocked_kernels = 0; });
}

PyMethodDef interpreter_functions[] = {
    EAGER_ONE("install_interpreter", install_interpreter,
              "install_interpreter(interpreter)\n\nMakes it see this thread's op calls; None: "
              "nothing does."),
    {nullptr}};

}  // namespace eager::bind
