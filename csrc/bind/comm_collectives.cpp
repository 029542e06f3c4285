// Collectives over tensors.
#include <pybind11/stl.h>

#include "comm_group.h"

namespace py = pybind11;

namespace eager::bind {
namespace {

// Throws unless `large` has the dtype of `small` and `size` times its elements.
void expect_share(const char* op, const Tensor& large, const Tensor& small, int size) {
  if (large.dtype != small.dtype) {
    fail(ErrorKind::dtype, op, "the tensors have different dtypes", name(small.dtype),
         name(large.dtype));
  }
  if (large.numel != small.numel * size) {
    fail(ErrorKind::shape, op, "the sizes do not fit",
         std::to_string(size) + " times " + std::to_string(small.numel) + " elements",
         std::to_string(large.numel) + " elements");
  }
}

using Handle = std::unique_ptr<WorkObject>;
using Sizes = std::vector<size_t>;

struct Reduction {
  Operands operands;
  void* data;
  size_t count;
  comm::DType type;
  ReduceOp how;
};

Reduction all_reduce_call(PyObject* tensor, PyObject* op) {
  const TensorRef& t = to_target("all_reduce", tensor);
  Reduction r;
  r.how = to_reduction("all_reduce", op);
  r.data = r.operands.target(t, true);
  r.count = size_t(t->numel);
  r.type = comm_type(t->dtype);
  return r;
}

// all_reduce(group, tensor, op)
PyObject* all_reduce(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    if (n != 3) raise(PyExc_TypeError, "all_reduce() takes a group, a tensor and an operation");
    auto& group = py::handle(args[0]).cast<GroupObject&>();
    const Reduction r = all_reduce_call(args[1], args[2]);
    group.run_now(r.operands,
                  [&](comm::Group& g) { g.all_reduce(r.data, r.count, r.type, r.how); });
    return none();
  });
}

PyMethodDef comm_functions[] = {
    {"all_reduce", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(all_reduce)),
     METH_FASTCALL, "all_reduce(group, tensor, op)\n\nIn place, on the calling thread."},
    {nullptr}};

Handle all_reduce_async(GroupObject& group, const py::object& tensor, const py::object& op) {
  Reduction r = all_reduce_call(tensor.ptr(), op.ptr());
  return group.submit(std::move(r.operands),
                      [data = r.data, count = r.count, type = r.type, how = r.how](comm::Group& g) {
                        g.all_reduce(data, count, type, how);
                      });
}

Handle reduce(GroupObject& group, const py::object& tensor, const py::object& op, int root,
              bool async) {
  const bool mine = group.get()->rank() == root;
  const TensorRef& t = (mine ? to_target : to_source)("reduce", tensor.ptr());
  const ReduceOp how = to_reduction("reduce", op.ptr());
  Operands operands;
  // Only the root's is written.
  void* data = mine ? operands.target(t, true) : const_cast<void*>(operands.source(t));
  return group.run(async, std::move(operands),
                   [=, count = size_t(t->numel), type = comm_type(t->dtype)](comm::Group& g) {
                     g.reduce(data, count, type, how, root);
                   });
}

Handle reduce_scatter(GroupObject& group, const py::object& output, const py::object& input,
                      const py::object& op, bool async) {
  const TensorRef& out = to_target("reduce_scatter", output.ptr());
  const TensorRef& in = to_source("reduce_scatter", input.ptr());
  const ReduceOp how = to_reduction("reduce_scatter", op.ptr());
  expect_share("reduce_scatter", *in, *out, group.get()->size());
  Operands operands;
  const void* from = operands.source(in);
  void* to = operands.target(out, false);
  return group.run(async, std::move(operands),
                   [=, count = size_t(out->numel), type = comm_type(out->dtype)](comm::Group& g) {
                     g.reduce_scatter(from, to, count, type, how);
                   });
}

Handle all_gather(GroupObject& group, const py::object& output, const py::object& input,
                  bool async) {
  const TensorRef& out = to_target("all_gather", output.ptr());
  const TensorRef& in = to_source("all_gather", input.ptr());
  expect_share("all_gather", *out, *in, group.get()->size());
  Operands operands;
  const void* from = operands.source(in);
  void* to = operands.target(out, false);
  return group.run(async, std::move(operands),
                   [=, bytes = bytes_of(*in)](comm::Group& g) { g.all_gather(from, to, bytes); });
}

Handle broadcast(GroupObject& group, const py::object& tensor, int root, bool async) {
  const bool mine = group.get()->rank() == root;
  const TensorRef& t = (mine ? to_source : to_target)("broadcast", tensor.ptr());
  Operands operands;
  void* data = mine ? const_cast<void*>(operands.source(t)) : operands.target(t, false);
  return group.run(async, std::move(operands),
                   [=, bytes = bytes_of(*t)](comm::Group& g) { g.broadcast(data, bytes, root); });
}

Handle gather(GroupObject& group, const py::object& output, const py::object& input, int root,
              bool async) {
  const TensorRef& in = to_source("gather", input.ptr());
  Operands operands;
  const void* from = operands.source(in);
  void* to = nullptr;
  if (group.get()->rank() == root) {
    const TensorRef& out = to_target("gather", output.ptr());
    expect_share("gather", *out, *in, group.get()->size());
    to = operands.target(out, false);
  }
  return group.run(async, std::move(operands),
                   [=, bytes = bytes_of(*in)](comm::Group& g) { g.gather(from, to, bytes, root); });
}

Handle scatter(GroupObject& group, const py::object& output, const py::object& input, int root,
               bool async) {
  const TensorRef& out = to_target("scatter", output.ptr());
  Operands operands;
  const void* from = nullptr;
  if (group.get()->rank() == root) {
    const TensorRef& in = to_source("scatter", input.ptr());
    expect_share("scatter", *in, *out, group.get()->size());
    from = operands.source(in);
  }
  void* to = operands.target(out, false);
  return group.run(async, std::move(operands), [=, bytes = bytes_of(*out)](comm::Group& g) {
    g.scatter(from, to, bytes, root);
  });
}

// Counts of elements as bytes, checked against the tensor they cut.
Sizes to_parts(const Tensor& t, const std::vector<int64_t>& counts, int ranks) {
  Sizes bytes;
  int64_t left = t.numel;
  for (int64_t n : counts) {
    if (n < 0 || n > left) break;
    left -= n;
    bytes.push_back(size_t(n) * item_size(t.dtype));
  }
  if (left != 0 || bytes.size() != size_t(ranks)) {
    fail(ErrorKind::shape, "all_to_all", "the sizes do not cut the tensor",
         std::to_string(ranks) + " sizes that add up to " + std::to_string(t.numel),
         std::to_string(counts.size()) + " sizes");
  }
  return bytes;
}

Handle all_to_all(GroupObject& group, const py::object& output, const py::object& input,
                  const std::vector<int64_t>& received, const std::vector<int64_t>& sent,
                  bool async) {
  const TensorRef& out = to_target("all_to_all", output.ptr());
  const TensorRef& in = to_source("all_to_all", input.ptr());
  const Sizes to_send = to_parts(*in, sent, group.get()->size());
  const Sizes to_receive = to_parts(*out, received, group.get()->size());
  Operands operands;
  const void* from = operands.source(in);
  void* to = operands.target(out, false);
  return group.run(async, std::move(operands),
                   [=](comm::Group& g) { g.all_to_all(from, to_send, to, to_receive); });
}

Handle barrier(GroupObject& group, bool async) {
  return group.run(async, Operands(), [](comm::Group& g) { g.barrier(); });
}

// --- between two ranks --------------------------------------------------------------------------

void send(GroupObject& group, const py::object& tensor, int to, uint32_t tag) {
  const TensorRef& t = to_source("send", tensor.ptr());
  Operands operands;
  const void* data = operands.source(t);
  group.run_now(operands,
                [=, bytes = bytes_of(*t)](comm::Group& g) { g.send(data, bytes, to, tag); });
}

int recv(GroupObject& group, const py::object& tensor, int source, uint32_t tag) {
  const TensorRef t = to_target("recv", tensor.ptr());
  Operands operands;
  void* data = operands.target(t, false);
  int from = source;
  group.run_now(operands, [=, &from, bytes = bytes_of(*t)](comm::Group& g) {
    const size_t got = g.recv(data, bytes, source, tag, &from);
    if (got != bytes) {
      comm::fail(comm::ErrorKind::mismatch, "recv", "the message is shorter than the tensor",
                 std::to_string(bytes) + " bytes", std::to_string(got) + " bytes");
    }
  });
  return from;
}

Handle isend(GroupObject& group, const py::object& tensor, int to, uint32_t tag) {
  const TensorRef& t = to_source("isend", tensor.ptr());
  Operands operands;
  const void* data = operands.source(t);
  return group.handle(group.get()->isend(data, bytes_of(*t), to, tag), std::move(operands));
}

Handle irecv(GroupObject& group, const py::object& tensor, int source, uint32_t tag) {
  const TensorRef& t = to_target("irecv", tensor.ptr());
  Operands operands;
  void* data = operands.target(t, false);
  return group.handle(group.get()->irecv(data, bytes_of(*t), source, tag), std::move(operands));
}

}  // namespace

void bind_comm_groups(py::module_& m) {
  py::class_<WorkObject>(m, "Work", "An operation that runs by itself.")
      .def("done", &WorkObject::done)
      .def("wait", &WorkObject::wait, py::arg("seconds"))
      .def("exception", [](const WorkObject& w) {
        return py::reinterpret_steal<py::object>(exception_object(w.exception()));
      });
  py::class_<GroupObject> group(m, "Group", "See csrc/comm/group.h.");
  group
      .def(py::init<const MeshObject&, std::shared_ptr<comm::Store>, std::vector<int>,
                    const std::string&, double, std::string, std::string>(),
           py::arg("mesh"), py::arg("store"), py::arg("ranks"), py::arg("key"), py::arg("timeout"),
           py::arg("algorithm"), py::arg("table"))
      .def_property_readonly("rank", [](const GroupObject& g) { return g.get()->rank(); })
      .def_property_readonly("size", [](const GroupObject& g) { return g.get()->size(); })
      .def_property_readonly(
          "address",
          [](const GroupObject& g) { return reinterpret_cast<uintptr_t>(g.get().get()); })
      .def("all_reduce_async", &all_reduce_async)
      .def("reduce", &reduce)
      .def("reduce_scatter", &reduce_scatter)
      .def("all_gather", &all_gather)
      .def("broadcast", &broadcast)
      .def("gather", &gather)
      .def("scatter", &scatter)
      .def("all_to_all", &all_to_all)
      .def("barrier", &barrier)
      .def("send", &send)
      .def("recv", &recv)
      .def("isend", &isend)
      .def("irecv", &irecv)
      .def("algorithm",
           [](const GroupObject& g, size_t bytes) { return g.get()->algorithm(bytes); })
      .def("set_timeout",
           [](const GroupObject& g, double t) { g.get()->set_timeout(to_duration(t)); })
      .def("lost", [](const GroupObject& g) { return g.mesh() ? g.mesh()->lost() : -1; })
      .def("stats",
           [](const GroupObject& g) {
             g.get();
             return comm_stats(*g.mesh());
           })
      .def("close", &GroupObject::close);
  bind_plans(m, group);
  bind_windows(m, group);
  m.def(
      "prepare_target",
      [](const std::string& op, const py::object& tensor) {
        ++to_target(op.c_str(), tensor.ptr())->storage->version;
      },
      "Counts the version of a tensor up that an engine of Python's is about to write; raises "
      "if it must not be written.");
  check_status(PyModule_AddFunctions(m.ptr(), comm_functions));
}

}  // namespace eager::bind
