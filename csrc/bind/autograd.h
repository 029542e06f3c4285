// Tape entries of the Python surface.
#pragma once
#include "python.h"

namespace eager::bind {

void init_autograd(PyObject* module);
PyObject* node_object(const Ref<Node>& node);  // the value of grad_fn; None for null
void set_requires_grad(const TensorRef& t, bool value);
extern PyMethodDef autograd_functions[];

}  // namespace eager::bind
