// Compiled programs: launching them from Python.
#pragma once
#include <pybind11/pybind11.h>

namespace eager::bind {

void bind_program(pybind11::module_& m);

}  // namespace eager::bind
