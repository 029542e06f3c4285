// eager._C.comm: the communication library (csrc/comm) over tensors.
//
// Whatever can wait runs without the interpreter lock.  Signals get through: waits of the main
// thread come up for air some ten times a second (poll_signals).
#pragma once
#include <pybind11/pybind11.h>

#include <bitset>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/error.h"
#include "comm/group.h"
#include "comm/mesh.h"
#include "python.h"

namespace eager::bind {

void bind_comm(pybind11::module_& m);
void bind_comm_groups(pybind11::module_& m);  // of its submodule

// Sets the Python exception for an error of the communication library.
void set_comm_error(const comm::Error& e) noexcept;
// Runs Python's signal handlers on the main thread; throws PythonError if one raised.
void poll_signals();
// A new reference to the exception that `e` stands for; None for null.
PyObject* exception_object(const std::exception_ptr& e);

comm::Duration to_duration(double seconds);
pybind11::dict comm_stats(comm::Fabric&);
// A contiguous tensor over [base + offset, base + bytes), which keeps `owner`.
pybind11::object tensor_over(std::shared_ptr<void> owner, void* base, size_t bytes,
                             const pybind11::object& shape, const pybind11::object& dtype,
                             size_t offset);

// Large tensors made from now on lie in regions of the mesh, until stop_sharing (comm_tensors.cpp).
void start_sharing(std::shared_ptr<comm::Mesh> mesh);
void stop_sharing();

// The numbers of the groups that live here, those included that only a plan keeps.
struct GroupIds {
  std::mutex mutex;
  std::bitset<comm::kGroups> taken;
};

// The mesh as Python sees it: null after close().
struct MeshObject {
  std::shared_ptr<comm::Mesh> mesh;
  std::shared_ptr<GroupIds> ids = std::make_shared<GroupIds>();
  bool shares_tensors = false;

  comm::Mesh& get() const;
  void close();
  ~MeshObject() { close(); }
};

// Memory of a mesh.  Tensors over it share ownership, and so keep the mesh.
struct SharedRegion {
  SharedRegion(std::shared_ptr<comm::Mesh> m, size_t bytes)
      : mesh(std::move(m)), region(&mesh->allocate(bytes)) {}
  ~SharedRegion() { mesh->release(*region); }
  SharedRegion(const SharedRegion&) = delete;

  std::shared_ptr<comm::Mesh> mesh;
  const comm::Region* region;
};

struct Buffer {
  std::shared_ptr<SharedRegion> shared;
  size_t bytes;
};

// What Python waits for.  Results of strided tensors are unpacked by whoever asks first.
class WorkObject {
 public:
  struct Copy {
    TensorRef packed, target;
  };
  struct Operands {
    std::vector<Ref<Storage>> memory;  // must live until the end
    std::vector<Copy> copies;
  };
  WorkObject(std::shared_ptr<comm::Work> work, Operands operands)
      : work_(std::move(work)), operands_(std::move(operands)) {}
  bool done();
  // False if `seconds` passed first; negative: the deadline is that of the operation itself.
  bool wait(double seconds);
  std::exception_ptr exception() const { return work_->exception(); }
  // Whether the memory of the operands is still in use.
  bool busy() const { return !work_->done(); }

 private:
  void unpack();

  std::shared_ptr<comm::Work> work_;
  Operands operands_;
};

}  // namespace eager::bind
