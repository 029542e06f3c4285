// Errors, stores, the mesh, static memory and work handles.
#include "comm.h"

#include <pybind11/stl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cmath>

#include "comm/store.h"
#include "core/kernels.h"
#include "core/pool.h"
#include "tensor.h"
#include "types.h"

namespace py = pybind11;

namespace eager::bind {
namespace {

using comm::Clock;
using comm::Duration;

constexpr Duration kSlice = std::chrono::milliseconds(100);

const char* kind_name(comm::ErrorKind kind) {
  switch (kind) {
    case comm::ErrorKind::invalid:
      return "invalid";
    case comm::ErrorKind::mismatch:
      return "mismatch";
    case comm::ErrorKind::timeout:
      return "timeout";
    case comm::ErrorKind::peer_lost:
      return "peer_lost";
    case comm::ErrorKind::protocol:
      return "protocol";
    case comm::ErrorKind::authentication:
      return "authentication";
    case comm::ErrorKind::system:
      return "system";
  }
  return "system";
}

// Calls f(slice) until it returns true or `timeout` has passed; a slice that ends with
// Error(timeout) counts as false, but for the last.  Signals get through in between.
template <class F>
void in_slices(Duration timeout, Duration slice, F&& f) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    const Duration left = deadline - Clock::now();
    try {
      LongWork work(true);
      return f(std::max(std::min(left, slice), Duration(1)));
    } catch (const comm::Error& e) {
      if (e.kind != comm::ErrorKind::timeout || left <= slice) throw;
    }
    check_status(PyErr_CheckSignals());
  }
}

}  // namespace

void set_comm_error(const comm::Error& e) noexcept {
  PyObject* module = PyImport_ImportModule("eager.distributed.errors");
  PyObject* made = module ? PyObject_CallMethod(module, "from_native", "ssi", kind_name(e.kind),
                                                e.what(), e.peer)
                          : nullptr;
  if (made) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made)), made);
  Py_XDECREF(made);
  Py_XDECREF(module);
}

void poll_signals() {
  // Python runs handlers on its main thread only.  Other threads stay clear of the interpreter,
  // which may be shutting down while they wait.
  if (syscall(SYS_gettid) != getpid()) return;
  Gil gil;
  check_status(PyErr_CheckSignals());
}

PyObject* exception_object(const std::exception_ptr& e) {
  if (!e) return none();
  try {
    std::rethrow_exception(e);
  } catch (...) {
    translate_exception();
  }
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  Py_XDECREF(type);
  Py_XDECREF(trace);
  return value;
}

Duration to_duration(double seconds) {
  constexpr double kYear = 365.0 * 24 * 3600;
  if (std::isnan(seconds)) seconds = 0;
  return Duration(int64_t(std::clamp(seconds, 0.0, kYear) * 1e9));
}

// --- the mesh -----------------------------------------------------------------------------------

py::dict comm_stats(comm::Fabric& mesh) {
  const comm::Stats& s = mesh.stats();
  py::dict d;
  d["puts"] = s.puts.load(std::memory_order_relaxed);
  d["put_bytes"] = s.put_bytes.load(std::memory_order_relaxed);
  d["direct_bytes"] = s.direct_bytes.load(std::memory_order_relaxed);
  d["staged_bytes"] = s.staged_bytes.load(std::memory_order_relaxed);
  d["sleeps"] = s.sleeps.load(std::memory_order_relaxed);
  return d;
}

comm::Mesh& MeshObject::get() const {
  if (!mesh) comm::fail(comm::ErrorKind::invalid, "mesh", "it was closed");
  return *mesh;
}

void MeshObject::close() {
  if (!mesh) return;
  if (std::exchange(shares_tensors, false)) stop_sharing();
  auto last = std::exchange(mesh, nullptr);
  LongWork work(true);  // the destructor waits for the mesh's thread
  last->leave();        // regions that tensors lie in keep it beyond that
  last.reset();
}

namespace {

std::shared_ptr<MeshObject> make_mesh(comm::Store& store, int rank, int size, std::string prefix,
                                      std::string secret, std::string transport,
                                      std::string address, std::string devices, double timeout,
                                      double heartbeat) {
  comm::MeshOptions options;
  options.rank = rank;
  options.size = size;
  options.prefix = std::move(prefix);
  options.secret = std::move(secret);
  options.transport = std::move(transport);
  options.address = std::move(address);
  options.devices = std::move(devices);
  options.timeout = to_duration(timeout);
  options.heartbeat = to_duration(heartbeat);
  options.poll = poll_signals;
  auto made = std::make_shared<MeshObject>();
  LongWork work(true);
  made->mesh = std::make_shared<comm::Mesh>(options, store);
  return made;
}

}  // namespace

py::object tensor_over(std::shared_ptr<void> owner, void* base, size_t bytes,
                       const py::object& shape, const py::object& dtype, size_t offset) {
  const Dims dims = to_ints(shape.ptr(), "shape");
  const DType type = to_dtype(dtype.ptr());
  int64_t count = 1;
  bool fits = offset <= bytes && offset % item_size(type) == 0;
  for (int64_t d : dims) fits &= d >= 0 && !__builtin_mul_overflow(count, d, &count);
  if (!fits || size_t(count) > (bytes - offset) / item_size(type)) {
    fail(ErrorKind::value, "Buffer.tensor", "there is no such tensor in the memory",
         "a place within " + std::to_string(bytes) + " bytes, at a multiple of the element size",
         std::string(name(type)) + to_string(dims) + " at offset " + std::to_string(offset));
  }
  auto held = std::make_unique<std::shared_ptr<void>>(std::move(owner));
  const auto release = [](void* p) { delete static_cast<std::shared_ptr<void>*>(p); };
  auto storage = Storage::wrap(static_cast<char*>(base) + offset, size_t(count) * item_size(type),
                               release, held.get());
  (void)held.release();
  return py::reinterpret_steal<py::object>(
      check(wrap(Tensor::over(std::move(storage), dims, type))).release());
}

namespace {

void share_tensors(MeshObject& m) {
  if (m.shares_tensors || m.get().size() == 1) return;
  const int host = m.mesh->host(m.mesh->rank());
  bool neighbours = false;
  for (int r = 0; r < m.mesh->size(); ++r) {
    neighbours |= r != m.mesh->rank() && m.mesh->host(r) == host &&
                  std::string(m.mesh->transport(r)) == "shm";
  }
  if (!neighbours) return;
  start_sharing(m.mesh);
  m.shares_tensors = true;
}

// --- stores -------------------------------------------------------------------------------------

std::unique_ptr<comm::Store> make_store(const std::string& host, uint16_t port,
                                        const std::string& secret, double timeout) {
  std::unique_ptr<comm::Store> made;
  // Attempts grow, so that a slow handshake gets its time.
  Duration slice = std::chrono::milliseconds(500);
  in_slices(to_duration(timeout), slice, [&](Duration limit) {
    made = std::make_unique<comm::Store>(host, port, secret, std::max(limit, slice));
    slice *= 2;
  });
  made->set_timeout(to_duration(timeout));
  return made;
}

double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }

// What a request that the server answers at once returns.
template <class F>
auto unlocked(F&& f) {
  LongWork work(true);
  return f();
}

void bind_stores(py::module_& m) {
  py::class_<comm::StoreServer>(m, "StoreServer", "Serves a store from a thread of its own.")
      .def(py::init([](const std::string& host, uint16_t port, std::string secret) {
             return std::make_unique<comm::StoreServer>(host, port, std::move(secret));
           }),
           py::arg("host"), py::arg("port"), py::arg("secret"))
      .def_property_readonly("port", &comm::StoreServer::port);
  using comm::Store;
  py::class_<Store, std::shared_ptr<Store>>(
      m, "Store", "A client; see csrc/comm/store.h.  Times are in seconds.")
      .def(py::init(&make_store), py::arg("host"), py::arg("port"), py::arg("secret"),
           py::arg("timeout"))
      .def("set",
           [](Store& s, const std::string& key, const py::bytes& value) {
             const std::string text = value;
             unlocked([&] { s.set(key, text); });
           })
      .def("get",
           [](Store& s, const std::string& key) {
             std::string value;
             in_slices(s.timeout(), kSlice, [&](Duration limit) { value = s.get(key, limit); });
             return py::bytes(value);
           })
      .def("add", [](Store& s, const std::string& key,
                     int64_t amount) { return unlocked([&] { return s.add(key, amount); }); })
      .def("compare_set",
           [](Store& s, const std::string& key, const py::bytes& expected,
              const py::bytes& desired) {
             const std::string from = expected, to = desired;
             return py::bytes(unlocked([&] { return s.compare_set(key, from, to); }));
           })
      .def("wait",
           [](Store& s, const std::vector<std::string>& keys, double timeout) {
             in_slices(to_duration(timeout), kSlice, [&](Duration limit) { s.wait(keys, limit); });
           })
      .def("check",
           [](Store& s, const std::vector<std::string>& keys) {
             return unlocked([&] { return s.check(keys); });
           })
      .def("remove",
           [](Store& s, const std::string& key) { return unlocked([&] { return s.remove(key); }); })
      .def("size", [](Store& s) { return unlocked([&] { return s.size(); }); })
      .def_property(
          "timeout", [](const Store& s) { return seconds(s.timeout()); },
          [](Store& s, double t) { s.set_timeout(to_duration(t)); });
}

void bind_mesh(py::module_& m) {
  py::class_<MeshObject, std::shared_ptr<MeshObject>>(m, "Mesh", "See csrc/comm/mesh.h.")
      .def(py::init(&make_mesh), py::arg("store"), py::kw_only(), py::arg("rank"), py::arg("size"),
           py::arg("prefix"), py::arg("secret"), py::arg("transport"), py::arg("address"),
           py::arg("devices"), py::arg("timeout"), py::arg("heartbeat"))
      .def("host", [](const MeshObject& o, int rank) { return o.get().host(rank); })
      .def("transport", [](const MeshObject& o, int rank) { return o.get().transport(rank); })
      .def("reason", [](const MeshObject& o, int rank) { return o.get().reason(rank); })
      .def("share_tensors", &share_tensors,
           "Lets large tensors made from now on lie in memory that ranks of this host can map.")
      .def("close", &MeshObject::close);
  py::class_<Buffer, std::shared_ptr<Buffer>>(m, "Buffer", "Memory that peers can write or map.")
      .def_property_readonly("nbytes", [](const Buffer& b) { return b.bytes; })
      .def(
          "tensor",
          [](const Buffer& b, const py::object& shape, const py::object& dtype, size_t offset) {
            return tensor_over(b.shared, b.shared->region->base, b.bytes, shape, dtype, offset);
          },
          py::arg("shape"), py::arg("dtype"), py::arg("offset") = 0,
          "A tensor over the memory from offset (bytes), which it keeps alive.");
}

}  // namespace

// --- work ---------------------------------------------------------------------------------------

void WorkObject::unpack() {
  if (work_->exception()) return;
  for (Copy& c : std::exchange(operands_.copies, {})) {
    copy_into(*c.packed, *c.target);
    ++c.target->storage->version;
  }
}

bool WorkObject::done() {
  if (!work_->done()) return false;
  unpack();
  return true;
}

bool WorkObject::wait(double limit) {
  const bool patient = limit < 0;
  const auto deadline = Clock::now() + to_duration(limit);
  for (bool ended = false; !ended;) {
    const Duration left = patient ? kSlice : Duration(deadline - Clock::now());
    if (left <= Duration::zero() && !work_->done()) return false;
    {
      LongWork work(true);
      ended = work_->wait(std::clamp(left, Duration(1), kSlice));
    }
    check_status(PyErr_CheckSignals());
  }
  unpack();
  return true;
}

void bind_comm(py::module_& parent) {
  py::module_ m = parent.def_submodule("comm", "The communication library.");
  bind_stores(m);
  bind_mesh(m);
  bind_comm_groups(m);
}

}  // namespace eager::bind
