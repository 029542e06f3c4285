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

// Takes memory that a tensor has exchanged for other memory.  Kernels that run without the
// interpreter lock know their operands' addresses only: it is freed when all have finished.
void retire(Ref<Storage> storage);

// Installs the callbacks by which the core runs Python implementations and gradients.
void init_interpreter();
extern PyMethodDef interpreter_functions[];

}  // namespace eager::bind
