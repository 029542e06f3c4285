// The extension module.  What is called rarely is bound by pybind11; the rest are plain tables.
#include <pybind11/pybind11.h>

#include "autograd.h"
#include "comm.h"
#include "convert.h"
#include "core/allocator.h"
#include "core/gemm.h"
#include "core/pool.h"
#include "core/program.h"
#include "interchange.h"
#include "interpreter.h"
#include "op_function.h"
#include "program.h"
#include "tensor.h"
#include "types.h"

namespace py = pybind11;

namespace eager::bind {
namespace {

py::dict memory_stats() {
  const AllocatorStats s = allocator_stats();
  py::dict d;
  d["allocated_bytes"] = s.allocated_bytes;
  d["peak_allocated_bytes"] = s.peak_allocated_bytes;
  d["reserved_bytes"] = s.reserved_bytes;
  d["allocations"] = s.allocations;
  d["cache_hits"] = s.cache_hits;
  d["system_allocations"] = s.system_allocations;
  return d;
}

void set_threads(int n) {
  if (n < 1) {
    fail(ErrorKind::value, "set_num_threads", "there must be a thread to run on", "at least 1",
         std::to_string(n));
  }
  set_num_threads(n);
}

void set_default(const py::object& dtype) {
  DType t = to_dtype(dtype.ptr());
  if (!is_floating(t)) {
    fail(ErrorKind::dtype, "set_default_dtype", "the default dtype must be a floating one",
         "float16, bfloat16, float32 or float64", name(t));
  }
  set_default_dtype(t);
}

// Exceptions of the core and of csrc/comm that reach pybind11's own functions.
void translate(std::exception_ptr e) {
  try {
    if (e) std::rethrow_exception(e);
  } catch (const Error&) {
    translate_exception();
  } catch (const PythonError&) {
    translate_exception();
  } catch (const comm::Error&) {
    translate_exception();
  }
}

void bind_module(py::module_& m) {
  py::register_exception_translator(translate);
  m.def(
      "registry_hash", [] { return std::string(registry_hash()); },
      "Of the definitions the extension was generated from.");
  m.def(
      "op_names",
      [] {
        py::list names;
        for (int i = 0; i < op_count(); ++i) names.append(op(uint16_t(i)).name);
        return names;
      },
      "The names of the extension's ops, by id.");
  m.def(
      "instruction_set",
      [] {
        static const char* const kNames[kIsas] = {"baseline", "avx2", "avx512"};
        return std::string(kNames[isa()]);
      },
      "The instruction set whose kernels run: \"baseline\", \"avx2\" or \"avx512\".");
  m.def(
      "set_blas_path", [](const std::string& path) { set_blas_path(path.c_str()); },
      py::arg("path"), "Where the BLAS library lies; it is loaded by the first product.");
  m.def("get_num_threads", &num_threads, "The number of threads kernels run on.");
  m.def("set_num_threads", &set_threads, py::arg("threads"),
        "Sets the number of threads kernels run on.");
  m.def("memory_stats", &memory_stats, "The allocator's counters.");
  m.def("next_epoch", &Storage::next_epoch,
        "Begins a new epoch: memory made from now on has this `_storage_epoch` or a later one.");
  m.def("reset_peak_memory_stats", &reset_peak_stats, "Forgets the peak.");
  m.def("empty_cache", &empty_cache, "Gives cached memory back to the system.");
  m.def(
      "get_default_dtype",
      [] { return py::reinterpret_borrow<py::object>(dtype_object(default_dtype())); },
      "The dtype of tensors made from Python floats.");
  m.def("set_default_dtype", &set_default, py::arg("dtype"),
        "Sets the dtype of tensors made from Python floats.");
}

}  // namespace
}  // namespace eager::bind

PYBIND11_MODULE(_C, m) {
  using namespace eager::bind;
  m.doc() = "The compiled part of eager: the Tensor type, ops, and the tape.";
  try {
    find_known_ops();
    init_types(m.ptr());
    init_tensor_type(m.ptr());
    init_op_function(m.ptr());
    init_autograd(m.ptr());
    init_interpreter();
    for (PyMethodDef* table : {op_functions, interpreter_functions, autograd_functions,
                               creation_functions, dlpack_functions}) {
      check_status(PyModule_AddFunctions(m.ptr(), table));
    }
    bind_module(m);
    bind_program(m);
    bind_comm(m);
  } catch (const PythonError&) {
    throw py::error_already_set();
  }
}
