// The interpreter hook: the core's recorder, implemented by a Python object.
#pragma once
#include "python.h"

namespace eager::bind {

// The innermost interpreter of this thread, or null.  Borrowed.  Null while one is running.
PyObject* interpreter();

// Runs the enclosed code as if no interpreter were installed.
class Beneath {
 public:
  Beneath() : before_(recorder) { recorder = nullptr; }
  ~Beneath() { recorder = before_; }
  Beneath(const Beneath&) = delete;

 private:
  Recorder* before_;
};

void tell_read(PyObject* tensor, PyObject* value);
void tell_create(PyObject* tensor, PyObject* data);
void tell_grad(PyObject* tensor, PyObject* value, bool written);

// Installs the callbacks by which the core runs Python implementations and gradients.
void init_interpreter();
extern PyMethodDef interpreter_functions[];

}  // namespace eager::bind
