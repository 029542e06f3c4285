// Groups: how they are made and left, their plans and windows.
#include "comm_group.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "comm/window.h"

namespace py = pybind11;

namespace eager::bind {

namespace {

constexpr comm::DType kTypes[kDTypes] = {
    comm::DType::f32, comm::DType::f64, comm::DType::f16, comm::DType::bf16, comm::DType::i8,
    comm::DType::i16, comm::DType::i32, comm::DType::i64, comm::DType::u8,   comm::DType::boolean};

// Sends this rank's blob to all members through the store and gives theirs.
comm::Rendezvous exchange_through(std::shared_ptr<comm::Store> store, const std::string& key,
                                  size_t rank, size_t size) {
  auto round = std::make_shared<uint64_t>(0);
  return [=](const std::string& mine) {
    const std::string base = key + "/" + std::to_string((*round)++) + "/";
    store->set(base + std::to_string(rank), mine);
    std::vector<std::string> all(size);
    const auto deadline = comm::Clock::now() + store->timeout();
    for (size_t r = 0; r < size;) {
      const comm::Duration left = deadline - comm::Clock::now();
      const comm::Duration slice = std::chrono::milliseconds(100);
      try {
        all[r] = r == rank ? mine : store->get(base + std::to_string(r), std::min(left, slice));
        ++r;
      } catch (const comm::Error& e) {
        if (e.kind != comm::ErrorKind::timeout || left <= slice) throw;
        poll_signals();
      }
    }
    return all;
  };
}

// The smallest number that is free at all members; takes it.
uint32_t agree_on_id(GroupIds& ids, const comm::Rendezvous& exchange) {
  std::string mine;
  {
    std::lock_guard<std::mutex> lock(ids.mutex);
    mine = ids.taken.to_string();
  }
  std::bitset<comm::kGroups> taken;
  for (const std::string& theirs : exchange(mine)) {
    if (theirs.size() != comm::kGroups || theirs.find_first_not_of("01") != std::string::npos) {
      comm::fail(comm::ErrorKind::protocol, "new_group", "a member sent no list of groups");
    }
    taken |= std::bitset<comm::kGroups>(theirs);
  }
  uint32_t id = 0;
  while (id < comm::kGroups && taken[id]) ++id;
  if (id == comm::kGroups) {
    comm::fail(comm::ErrorKind::invalid, "new_group", "there are too many groups",
               "at most " + std::to_string(comm::kGroups) + " at a time", "one more",
               "destroy_process_group(group) for those that are not needed any more");
  }
  std::lock_guard<std::mutex> lock(ids.mutex);
  ids.taken.set(id);
  return id;
}

}  // namespace

comm::DType comm_type(DType t) { return kTypes[int(t)]; }

ReduceOp to_reduction(const char* op, PyObject* o) {
  const long code = PyLong_AsLong(o);
  if (code == -1 && PyErr_Occurred()) throw PythonError();
  if (code < 0 || code > long(ReduceOp::prod)) {
    fail(ErrorKind::value, op, "there is no such reduction",
         "ReduceOp.SUM, AVG, PRODUCT, MIN or MAX", std::to_string(code));
  }
  return ReduceOp(code);
}

const TensorRef& to_source(const char* op, PyObject* o) {
  const TensorRef& t = expect_tensor(o, op);
  if (t->device != Device::cpu) {
    fail(ErrorKind::device, op, "a meta tensor has no elements", "a tensor on cpu", "meta");
  }
  return t;
}

const TensorRef& to_target(const char* op, PyObject* o) {
  const TensorRef& t = to_source(op, o);
  if (t->requires_grad() && grad_enabled()) {
    fail(ErrorKind::autograd, op,
         "the tensor requires grad, and collectives are not differentiable",
         "a tensor that does not require grad, or grad mode off", "requires_grad=True",
         "tensor.detach(), or with eager.no_grad(): ...");
  }
  check_writable(op, *t);
  return t;
}

GroupObject::Ticket GroupObject::take_id() {
  const auto place = std::find(ranks_.begin(), ranks_.end(), mesh_->rank());
  const std::string key = key_ + "/" + std::to_string(tickets_++);
  LongWork work(true);
  Ticket t;
  t.exchange = exchange_through(store_, key, size_t(place - ranks_.begin()), ranks_.size());
  const uint32_t id = agree_on_id(*ids_, t.exchange);
  t.id = std::shared_ptr<uint32_t>(new uint32_t(id), [ids = ids_, mesh = mesh_](uint32_t* number) {
    std::lock_guard<std::mutex> lock(ids->mutex);
    if (!mesh->failed(*number)) ids->taken.reset(*number);
    delete number;
  });
  return t;
}

GroupObject::GroupObject(const MeshObject& mesh, std::shared_ptr<comm::Store> store,
                         std::vector<int> ranks, const std::string& key, double timeout,
                         std::string algorithm, std::string table)
    : ids_(mesh.ids),
      store_(std::move(store)),
      ranks_(std::move(ranks)),
      key_(key),
      timeout_(timeout) {
  mesh.get();
  mesh_ = mesh.mesh;
  if (std::find(ranks_.begin(), ranks_.end(), mesh_->rank()) == ranks_.end()) {
    comm::fail(comm::ErrorKind::invalid, "new_group", "this rank is not in the group");
  }
  const Ticket ticket = take_id();
  comm::GroupOptions options;
  options.timeout = to_duration(timeout);
  options.algorithm = std::move(algorithm);
  options.table = std::move(table);
  LongWork work(true);
  auto* made = new comm::Group(*mesh_, ranks_, *ticket.id, ticket.exchange, options);
  // The group uses the mesh until its end, and its number.
  group_ = std::shared_ptr<comm::Group>(
      made, [mesh = mesh_, id = ticket.id](comm::Group* g) { delete g; });
}

void GroupObject::settle() {
  // Signals get through while submitted work runs; its errors are for those who hold its handle.
  while (last_ && !last_->done()) {
    try {
      LongWork work(true);
      last_->wait(std::chrono::milliseconds(100));
    } catch (const std::exception&) {
    }
    check_status(PyErr_CheckSignals());
  }
  last_.reset();
  if (pending_.empty()) return;
  const auto ended = [](const Pending& p) { return p.work->done(); };
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), ended), pending_.end());
}

void GroupObject::close() {
  auto group = std::move(group_);
  auto mesh = std::move(mesh_);
  last_.reset();
  {
    LongWork work(true);  // the destructor waits for the group's thread
    group.reset();
    mesh.reset();
  }
  pending_.clear();
}

// --- plans --------------------------------------------------------------------------------------

namespace {

// Keeps its group and its memory: a compiled program may hold its address.
class PlanObject {
 public:
  PlanObject(std::shared_ptr<comm::Group> group, std::shared_ptr<SharedRegion> memory,
             std::unique_ptr<comm::Plan> plan)
      : group_(std::move(group)), memory_(std::move(memory)), plan_(std::move(plan)) {}
  ~PlanObject() {
    auto memory = std::move(memory_);
    LongWork work(true);
    plan_.reset();
    memory.reset();
    group_.reset();
  }

  const char* algorithm() const { return plan_->algorithm(); }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(plan_.get()); }
  void start() {
    LongWork work(true);
    plan_->start();
  }
  void finish() {
    LongWork work(true);
    plan_->finish();
  }
  void run() {
    LongWork work(true);
    plan_->start();
    plan_->finish();
  }
  std::unique_ptr<WorkObject> run_async() {
    auto work = group_->submit([plan = plan_, memory = memory_] {
      plan->start();
      plan->finish(true);
    });
    return std::make_unique<WorkObject>(std::move(work), WorkObject::Operands());
  }

 private:
  std::shared_ptr<comm::Group> group_;
  std::shared_ptr<SharedRegion> memory_;
  std::shared_ptr<comm::Plan> plan_;
};

// Offset and count as the library takes them; it checks them against the region.
template <class F>
std::unique_ptr<PlanObject> make_plan(const GroupObject& g, const Buffer& b, F&& plan) {
  const auto group = g.get();
  std::unique_ptr<comm::Plan> made;
  {
    LongWork work(true);
    made = plan(*group, *b.shared->region);
  }
  return std::make_unique<PlanObject>(group, b.shared, std::move(made));
}

}  // namespace

void bind_plans(py::module_& m, py::class_<GroupObject>& group) {
  py::class_<PlanObject>(m, "Plan", "A collective over static memory.")
      .def_property_readonly("algorithm", &PlanObject::algorithm)
      .def_property_readonly("address", &PlanObject::address)
      .def("start", &PlanObject::start)
      .def("finish", &PlanObject::finish)
      .def("run", &PlanObject::run)
      .def("run_async", &PlanObject::run_async);
  group
      .def("allocate",
           [](const GroupObject& g, size_t bytes) {
             g.get();
             LongWork work(true);
             return Buffer{std::make_shared<SharedRegion>(g.mesh(), std::max<size_t>(bytes, 1)),
                           bytes};
           })
      .def("plan_all_reduce",
           [](const GroupObject& g, const Buffer& b, size_t offset, size_t count,
              const py::object& dtype, const py::object& op) {
             const auto type = comm_type(to_dtype(dtype.ptr()));
             const ReduceOp how = to_reduction("plan_all_reduce", op.ptr());
             return make_plan(g, b, [&](comm::Group& group, const comm::Region& region) {
               return group.plan_all_reduce(region, offset, count, type, how);
             });
           })
      .def("plan_reduce_scatter",
           [](const GroupObject& g, const Buffer& b, size_t offset, size_t count,
              const py::object& dtype, const py::object& op) {
             const auto type = comm_type(to_dtype(dtype.ptr()));
             const ReduceOp how = to_reduction("plan_reduce_scatter", op.ptr());
             return make_plan(g, b, [&](comm::Group& group, const comm::Region& region) {
               return group.plan_reduce_scatter(region, offset, count, type, how);
             });
           })
      .def("plan_all_gather", [](const GroupObject& g, const Buffer& b, size_t offset, size_t count,
                                 const py::object& dtype) {
        const size_t item = item_size(to_dtype(dtype.ptr()));
        if (count > SIZE_MAX / item) {
          fail(ErrorKind::value, "plan_all_gather", "the count is too large", "a count in memory",
               std::to_string(count));
        }
        return make_plan(g, b, [&](comm::Group& group, const comm::Region& region) {
          return group.plan_all_gather(region, offset, count * item);
        });
      });
}

// --- windows ------------------------------------------------------------------------------------

namespace {

// See comm/window.h; tensors over its memory keep it alive.
struct WindowObject {
  std::shared_ptr<comm::Mesh> mesh;
  std::shared_ptr<uint32_t> id;
  std::shared_ptr<comm::Window> window;
};

std::unique_ptr<WindowObject> open_window(GroupObject& g, size_t bytes) {
  g.get();
  const auto mesh = g.mesh();
  const GroupObject::Ticket ticket = g.take_id();
  LongWork work(true);
  auto* made = new comm::Window(*mesh, g.ranks(), *ticket.id, ticket.exchange, bytes,
                                to_duration(g.timeout()));
  auto window =
      std::shared_ptr<comm::Window>(made, [mesh, id = ticket.id](comm::Window* w) { delete w; });
  return std::make_unique<WindowObject>(WindowObject{mesh, ticket.id, std::move(window)});
}

void put(const WindowObject& w, const py::object& tensor, int to, size_t offset) {
  const TensorRef t = to_source("Window.put", tensor.ptr());
  if (!t->contiguous) {
    fail(ErrorKind::value, "Window.put", "the tensor is not contiguous", "a contiguous tensor",
         "strides " + to_string(t->strides), "tensor.contiguous()");
  }
  const auto memory = t->storage;
  LongWork work(true);
  w.window->put(t->data(), bytes_of(*t), offset, to);
}

}  // namespace

void bind_windows(py::module_& m, py::class_<GroupObject>& group) {
  py::class_<WindowObject>(m, "Window", "Memory that the others of a group write into.")
      .def(
          "tensor",
          [](const WindowObject& w, const py::object& shape, const py::object& dtype,
             size_t offset) {
            return tensor_over(w.window, w.window->data(), w.window->size(), shape, dtype, offset);
          },
          py::arg("shape"), py::arg("dtype"), py::arg("offset") = 0)
      .def("put", &put)
      .def("signal",
           [](const WindowObject& w, int to) {
             LongWork work(true);
             w.window->signal(to);
           })
      .def("wait", [](const WindowObject& w, int from, uint32_t count) {
        LongWork work(true);
        w.window->wait(from, count);
      });
  group.def("open_window", &open_window);
}

}  // namespace eager::bind
