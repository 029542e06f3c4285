// The small value types of the Python surface: dtype, device and Size.
#pragma once
#include "python.h"

namespace eager::bind {

struct PyDType {
  PyObject_HEAD DType value;
};
struct PyDevice {
  PyObject_HEAD Device value;
};

extern PyTypeObject* dtype_type;
extern PyTypeObject* device_type;
extern PyTypeObject* size_type;

void init_types(PyObject* module);

PyObject* dtype_object(DType t);    // borrowed; there is one object per dtype
PyObject* device_object(Device d);  // borrowed
Owned size_object(const Dims& shape);
Owned tuple_of(const Dims& values);

inline bool is_dtype(PyObject* o) { return Py_TYPE(o) == dtype_type; }
// A dtype object, or one of Python's float, int and bool (float64, int64, bool).
DType to_dtype(PyObject* o);
bool looks_like_dtype(PyObject* o);
// Whether `o` is channels_last; false if it is absent, None, or a format that means dense rows.
bool wants_channels_last(const char* what, PyObject* o);
// A device object or its name.
Device to_device(PyObject* o);

int64_t to_integer(PyObject* o, const char* what);
double to_floating(PyObject* o, const char* what);
// A sequence of integers.
Dims to_ints(PyObject* o, const char* what);
// Shapes and dimensions given as f(2, 3) or f((2, 3)).
Dims ints_or_sequence(PyObject* const* args, Py_ssize_t n, const char* what);

}  // namespace eager::bind
