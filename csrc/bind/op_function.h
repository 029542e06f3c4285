// Op calls from Python: the callable of an op, and the generic entries.
#pragma once
#include "python.h"

namespace eager::bind {

void init_op_function(PyObject* module);
extern PyMethodDef op_functions[];

}  // namespace eager::bind
