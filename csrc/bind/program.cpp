#include "program.h"

#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <vector>

#include "core/allocator.h"
#include "core/program.h"
#include "exchange.h"
#include "tensor.h"
#include "types.h"

namespace py = pybind11;

namespace eager::bind {
namespace {

struct Type {
  DType dtype;
  Dims shape;
};

struct Input {
  int buffer;  // -1: not accessed
  Type type;
};

struct Output {
  int buffer;
  int input;  // the input it is written into; -1: a fresh tensor
  int same;   // an earlier output of the same buffer, or -1
  Type type;
};

// A program with its tables and its arena.  One launch at a time: others wait.
class CompiledProgram {
 public:
  CompiledProgram(std::vector<int64_t> words, std::vector<int64_t> starts, int workers, int epochs,
                  const std::vector<uintptr_t>& bodies, std::vector<std::string> names,
                  size_t arena_bytes, const std::vector<std::pair<int, size_t>>& places,
                  const std::vector<std::pair<int, py::object>>& constants)
      : words_(std::move(words)),
        starts_(std::move(starts)),
        names_(std::move(names)),
        buffers_(names_.size(), nullptr),
        arena_(Storage::allocate(arena_bytes, Device::cpu)),
        arena_bytes_(arena_bytes) {
    for (uintptr_t address : bodies) {  // 0 and 1 stand for what is built in
      bodies_.push_back(address == 0   ? &gemm_tile
                        : address == 1 ? &exchange_tile
                                       : reinterpret_cast<Body>(address));
    }
    buffers_.at(0) = &flag_;
    for (const auto& [buffer, offset] : places) {
      buffers_.at(size_t(buffer)) = static_cast<char*>(arena_->data) + offset;
    }
    for (const auto& [buffer, object] : constants) {
      constants_.push_back(expect_tensor(object.ptr(), "program"));
      buffers_.at(size_t(buffer)) = constants_.back()->data();
    }
    program_ = {words_.data(),   starts_.data(), int32_t(workers), int32_t(epochs), bodies_.data(),
                buffers_.data(), &flag_};
  }

  void add_input(int buffer, const py::object& dtype, const py::object& shape) {
    inputs_.push_back({buffer, type(dtype, shape)});
  }
  void add_output(int buffer, int input, const py::object& dtype, const py::object& shape) {
    int same = -1;
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (outputs_[i].buffer == buffer && outputs_[i].same < 0) same = int(i);
    }
    outputs_.push_back({buffer, input, same, type(dtype, shape)});
  }

  // One launch: contiguous tensors in, tensors out.
  py::list run(const py::list& given) {
    if (given.size() != inputs_.size()) {
      fail(ErrorKind::value, "program", "wrong number of inputs", std::to_string(inputs_.size()),
           std::to_string(given.size()));
    }
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      py::gil_scoped_release release;  // the launch under way needs the interpreter to finish
      lock.lock();
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const TensorRef& t = expect_tensor(given[i].ptr(), "program");
      expect(*t, inputs_[i].type, i);
      if (inputs_[i].buffer >= 0) buffers_[size_t(inputs_[i].buffer)] = t->data();
    }
    py::list results(outputs_.size());
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const Output& out = outputs_[i];
      if (out.input >= 0) {
        results[i] = given[size_t(out.input)];
        continue;
      }
      if (out.same >= 0) {
        results[i] = results[size_t(out.same)];
        continue;
      }
      TensorRef t = Tensor::empty(out.type.shape, out.type.dtype);
      buffers_[size_t(out.buffer)] = t->data();
      results[i] = py::reinterpret_steal<py::object>(wrap(std::move(t)));
    }
    run_program(program_);
    for (const Output& out : outputs_) {
      if (out.input >= 0) ++tensor_of(given[size_t(out.input)].ptr())->storage->version;
    }
    if (flag_ != 0) {
      const std::string& name = names_[size_t(std::exchange(flag_, 0) - 1)];
      fail(ErrorKind::index, "compiled program", "an index is out of range",
           "indices from -n to n - 1, for the n elements of the indexed dimension of " + name,
           "one outside", "run the function eagerly to see the op and the index");
    }
    return results;
  }

  size_t arena_bytes() const { return arena_bytes_; }

 private:
  static Type type(const py::object& dtype, const py::object& shape) {
    return {to_dtype(dtype.ptr()), to_ints(shape.ptr(), "shape")};
  }

  static void expect(const Tensor& t, const Type& type, size_t i) {
    if (t.dtype == type.dtype && t.contiguous && t.device == Device::cpu && t.shape == type.shape) {
      return;
    }
    fail(ErrorKind::value, "program", "input " + std::to_string(i) + " does not fit",
         std::string("a contiguous tensor ") + name(type.dtype) + to_string(type.shape),
         std::string(t.contiguous ? "" : "a strided tensor ") + name(t.dtype) + to_string(t.shape) +
             " on " + name(t.device));
  }

  std::vector<int64_t> words_, starts_;
  std::vector<std::string> names_;
  std::vector<Body> bodies_;
  std::vector<void*> buffers_;
  std::vector<TensorRef> constants_;
  std::vector<Input> inputs_;
  std::vector<Output> outputs_;
  Ref<Storage> arena_;
  size_t arena_bytes_;
  int64_t flag_ = 0;
  Program program_{};
  std::mutex mutex_;
};

}  // namespace

void bind_program(py::module_& m) {
  py::class_<CompiledProgram>(m, "Program", "A compiled program with its tables and its arena.")
      .def(py::init<std::vector<int64_t>, std::vector<int64_t>, int, int,
                    const std::vector<uintptr_t>&, std::vector<std::string>, size_t,
                    const std::vector<std::pair<int, size_t>>&,
                    const std::vector<std::pair<int, py::object>>&>(),
           py::arg("words"), py::arg("starts"), py::arg("workers"), py::arg("epochs"),
           py::arg("bodies"), py::arg("names"), py::arg("arena_bytes"), py::arg("places"),
           py::arg("constants"))
      .def("add_input", &CompiledProgram::add_input, py::arg("buffer"), py::arg("dtype"),
           py::arg("shape"), "Declares the next input; buffer -1: it is not accessed.")
      .def("add_output", &CompiledProgram::add_output, py::arg("buffer"), py::arg("input"),
           py::arg("dtype"), py::arg("shape"),
           "Declares the next output; input -1: a fresh tensor, else that input.")
      .def("run", &CompiledProgram::run, py::arg("inputs"), "One launch.")
      .def_property_readonly("arena_bytes", &CompiledProgram::arena_bytes);
}

}  // namespace eager::bind
