// What every file of the binding needs: owned references, errors, argument lists.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <unistd.h>

#include <exception>
#include <string>
#include <utility>

#include "core/op.h"
#include "core/tape.h"
#include "core/tensor.h"

// CPython's macros use C casts and leave trailing struct fields out.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace eager::bind {

using namespace eager::core;

// A strong reference to a Python object.
class Owned {
 public:
  Owned() = default;
  explicit Owned(PyObject* p) : p_(p) {}  // takes over the caller's reference
  static Owned copy(PyObject* p) {
    Py_XINCREF(p);
    return Owned(p);
  }
  Owned(const Owned& o) : p_(o.p_) { Py_XINCREF(p_); }
  Owned(Owned&& o) noexcept : p_(std::exchange(o.p_, nullptr)) {}
  Owned& operator=(Owned o) noexcept {
    std::swap(p_, o.p_);
    return *this;
  }
  ~Owned() { Py_XDECREF(p_); }
  PyObject* get() const { return p_; }
  PyObject* release() { return std::exchange(p_, nullptr); }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  PyObject* p_ = nullptr;
};

// Thrown when the Python error indicator is set.
struct PythonError : std::exception {
  const char* what() const noexcept override { return "a Python exception is set"; }
};

inline Owned check(PyObject* p) {
  if (!p) throw PythonError();
  return Owned(p);
}
inline void check_status(int status) {
  if (status < 0) throw PythonError();
}
[[noreturn]] void raise(PyObject* type, const std::string& message);

// Turns the exception being handled into a Python one.
void translate_exception() noexcept;

// Runs `f`; an exception becomes a Python one and the result `failed`.
template <class F, class R>
R guarded(F&& f, R failed) noexcept {
  try {
    return f();
  } catch (...) {
    translate_exception();
    return failed;
  }
}
template <class F>
PyObject* guarded(F&& f) noexcept {
  return guarded(std::forward<F>(f), static_cast<PyObject*>(nullptr));
}

// Calls `f`, which runs Python code.  While the runtime shuts down, CPython ends every other thread
// that asks for the interpreter lock by unwinding its stack.  The destructors of our frames must
// not run then, without the lock: the thread sleeps until the process ends.
template <class F>
auto run_python(F&& f) {
  struct Sleep {
    bool returned = false;
    ~Sleep() {
      while (!returned) pause();
    }
  } sleep;
  auto result = f();
  sleep.returned = true;
  return result;
}

// Holds the interpreter lock, whether or not this thread had it.
class Gil {
 public:
  Gil() : state_(run_python(PyGILState_Ensure)) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;

 private:
  PyGILState_STATE state_;
};

// METH_FASTCALL | METH_KEYWORDS
using FastCall = PyObject* (*)(PyObject* self, PyObject* const* args, Py_ssize_t n,
                               PyObject* names);
inline PyCFunction as_method(FastCall f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}
#define EAGER_FAST(name, f, doc) {name, as_method(f), METH_FASTCALL | METH_KEYWORDS, doc}
#define EAGER_NOARGS(name, f, doc) {name, f, METH_NOARGS, doc}
#define EAGER_ONE(name, f, doc) {name, f, METH_O, doc}

// The arguments of a fast call sorted by parameter; those not given are null.
// `required` parameters must be given; only the first `positional` may be given by position.
template <int N>
struct Signature {
  const char* function;
  const char* names[N];
  int required;
  int positional = N;
};
void sort_arguments(const char* function, const char* const* names, int n_names, int required,
                    int positional, PyObject* const* args, Py_ssize_t n, PyObject* kwnames,
                    PyObject** out);
template <int N>
struct Arguments {
  PyObject* at[N] = {};
  Arguments(const Signature<N>& s, PyObject* const* args, Py_ssize_t n, PyObject* kwnames) {
    sort_arguments(s.function, s.names, N, s.required, s.positional, args, n, kwnames, at);
  }
  PyObject* operator[](int i) const { return at[i]; }
  bool has(int i) const { return at[i] && at[i] != Py_None; }
  bool truth(int i, bool otherwise = false) const {
    if (!has(i)) return otherwise;
    int t = PyObject_IsTrue(at[i]);
    check_status(t);
    return t != 0;
  }
};

inline PyObject* none() { Py_RETURN_NONE; }
inline Owned interned(const char* s) { return check(PyUnicode_InternFromString(s)); }
inline Owned import_attribute(const char* module, const char* name) {
  Owned m = check(PyImport_ImportModule(module));
  return check(PyObject_GetAttrString(m.get(), name));
}
// The same, looked up once and kept in `place`.  A function's static variable would not do as a
// place with an initialiser: an import may let other threads in, and one of them would wait for
// the initialisation with the interpreter lock in its hands.
inline PyObject* import_once(PyObject*& place, const char* module, const char* name) {
  if (!place) {
    PyObject* found = import_attribute(module, name).release();
    if (!place) place = found;  // else another thread was faster; both live forever
  }
  return place;
}

}  // namespace eager::bind
