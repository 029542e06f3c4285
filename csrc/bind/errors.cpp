// Exceptions and argument lists.
#include <cxxabi.h>

#include <new>

#include "comm.h"
#include "python.h"

namespace eager::bind {

void raise(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw PythonError();
}

namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::shape:
      return "ShapeError";
    case ErrorKind::dtype:
      return "DTypeError";
    case ErrorKind::index:
      return "IndexOutOfRange";
    case ErrorKind::device:
      return "DeviceError";
    case ErrorKind::value:
      return "ArgumentError";
    case ErrorKind::autograd:
      return "AutogradError";
    case ErrorKind::version:
      return "VersionError";
    case ErrorKind::memory:
      return "OutOfMemoryError";
    case ErrorKind::internal:
      return "EagerError";
  }
  return "EagerError";
}

void set_error(const char* name, const char* text) {
  PyObject* module = PyImport_ImportModule("eager.errors");
  PyObject* type = module ? PyObject_GetAttrString(module, name) : nullptr;
  if (type) PyErr_SetString(type, text);
  Py_XDECREF(type);
  Py_XDECREF(module);
}

}  // namespace

void translate_exception() noexcept {
  try {
    throw;
  } catch (const PythonError&) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "error without an exception");
  } catch (const Error& e) {
    set_error(class_name(e.kind), e.what());
  } catch (const comm::Error& e) {
    set_comm_error(e);
  } catch (const std::bad_alloc&) {
    set_error("OutOfMemoryError", "allocate: the system has no memory left");
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  } catch (abi::__forced_unwind&) {
    for (;;) pause();  // see run_python
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "unknown C++ exception");
  }
}

void sort_arguments(const char* function, const char* const* names, int n_names, int required,
                    int positional, PyObject* const* args, Py_ssize_t n, PyObject* kwnames,
                    PyObject** out) {
  if (n > positional) {
    raise(PyExc_TypeError, std::string(function) + "() takes at most " +
                               std::to_string(positional) + " positional arguments, " +
                               std::to_string(n) + " were given");
  }
  for (Py_ssize_t i = 0; i < n; ++i) out[i] = args[i];
  Py_ssize_t keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    PyObject* name = PyTuple_GET_ITEM(kwnames, k);
    int at = 0;
    while (at < n_names && PyUnicode_CompareWithASCIIString(name, names[at]) != 0) ++at;
    const char* text = PyUnicode_AsUTF8(name);
    if (!text) throw PythonError();
    if (at == n_names) {
      raise(PyExc_TypeError,
            std::string(function) + "() got an unexpected keyword argument '" + text + "'");
    }
    if (out[at]) {
      raise(PyExc_TypeError,
            std::string(function) + "() got two values for the argument '" + text + "'");
    }
    out[at] = args[n + k];
  }
  for (int i = 0; i < required; ++i) {
    if (!out[i]) {
      raise(PyExc_TypeError, std::string(function) + "() needs the argument '" + names[i] + "'");
    }
  }
}

}  // namespace eager::bind
