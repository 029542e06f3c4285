// Data from and to other libraries, and from plain Python.
#pragma once
#include "python.h"

namespace eager::bind {

// A tensor over the memory of a NumPy array, which it keeps alive.
TensorRef tensor_from_array(PyObject* array);
// A new tensor from nested sequences, numbers, arrays or tensors.  `dtype`: null to infer it.
TensorRef tensor_from_data(PyObject* data, const DType* dtype);
PyObject* to_numpy(const TensorRef& t);  // an array over the tensor's memory
PyObject* element_object(const Tensor& t, int64_t element_offset);  // a Python number

// Reads the only element of `t` for `what`, telling the interpreter.
Owned read_item(PyObject* self, const char* what);
// Raises unless the data of `t` can be read by Python.
void expect_readable(const Tensor& t, const char* what, bool allow_grad = false);

extern PyMethodDef creation_functions[];
extern PyMethodDef dlpack_functions[];

}  // namespace eager::bind
