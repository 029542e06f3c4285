// Groups as Python sees them, and what their calls share.
#pragma once
#include "comm.h"
#include "comm/store.h"
#include "core/kernels.h"
#include "core/pool.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {

using comm::ReduceOp;

comm::DType comm_type(DType t);
// Raises ArgumentError unless `o` is the number of a reduction that there is.
ReduceOp to_reduction(const char* op, PyObject* o);
// A tensor to read, and one to write: not read-only and not part of a recorded graph.
const TensorRef& to_source(const char* op, PyObject* o);
const TensorRef& to_target(const char* op, PyObject* o);
inline size_t bytes_of(const Tensor& t) { return size_t(t.numel) * item_size(t.dtype); }

// The operands of one call as the library takes them: addresses of packed memory.
class Operands {
 public:
  // Memory to read.
  const void* source(const TensorRef& t) {
    const TensorRef packed = contiguous(t);
    held.memory.push_back(packed->storage);
    return packed->data();
  }
  // Memory to write; `keeps`: the call reads it too, or leaves some of it alone.
  void* target(const TensorRef& t, bool keeps) {
    ++t->storage->version;
    if (t->contiguous) {
      held.memory.push_back(t->storage);
      return t->data();
    }
    const TensorRef packed = keeps ? contiguous(t) : Tensor::empty(t->shape, t->dtype);
    held.memory.push_back(packed->storage);
    held.copies.push_back({packed, t});
    return packed->data();
  }

  WorkObject::Operands held;
};

// A group, null after close().
class GroupObject {
 public:
  GroupObject(const MeshObject& mesh, std::shared_ptr<comm::Store> store, std::vector<int> ranks,
              const std::string& key, double timeout, std::string algorithm, std::string table);
  ~GroupObject() { close(); }

  const std::shared_ptr<comm::Group>& get() const {
    if (!group_) comm::fail(comm::ErrorKind::invalid, "collective", "the group was destroyed");
    return group_;
  }
  const std::shared_ptr<comm::Mesh>& mesh() const { return mesh_; }
  void close();
  // A number that no group or window of any member has, and what was agreed by.  Collective.
  struct Ticket {
    std::shared_ptr<uint32_t> id;  // given back with the last copy
    comm::Rendezvous exchange;
  };
  Ticket take_id();
  const std::vector<int>& ranks() const { return ranks_; }
  double timeout() const { return timeout_; }

  template <class F>
  void run_now(const Operands& operands, const F& call) {
    auto shared = get();
    settle();
    {
      LongWork work(true);
      const auto group = std::move(shared);  // goes without the lock, if it is the last
      call(*group);
    }
    for (const auto& c : operands.held.copies) copy_into(*c.packed, *c.target);
  }

  // Runs on the group's thread, which holds the memory as well: Python may drop the handle.
  template <class F>
  std::unique_ptr<WorkObject> submit(Operands operands, F call) {
    comm::Group* group = get().get();
    last_ = group->submit([group, call, memory = operands.held.memory] { call(*group); });
    return std::make_unique<WorkObject>(last_, std::move(operands.held));
  }

  template <class F>
  std::unique_ptr<WorkObject> run(bool async, Operands operands, F call) {
    if (async) return submit(std::move(operands), std::move(call));
    run_now(operands, call);
    return nullptr;
  }

  // A handle of work between two ranks, whose operands nothing else holds.
  std::unique_ptr<WorkObject> handle(std::shared_ptr<comm::Work> work, Operands operands) {
    settle();
    pending_.push_back({work, operands.held.memory});
    return std::make_unique<WorkObject>(std::move(work), std::move(operands.held));
  }

 private:
  struct Pending {
    std::shared_ptr<comm::Work> work;
    std::vector<Ref<Storage>> memory;
  };
  void settle();

  std::shared_ptr<comm::Mesh> mesh_;
  std::shared_ptr<GroupIds> ids_;
  std::shared_ptr<comm::Store> store_;
  std::vector<int> ranks_;
  std::string key_;
  double timeout_;
  uint64_t tickets_ = 0;
  std::shared_ptr<comm::Group> group_;
  std::shared_ptr<comm::Work> last_;  // the latest that was submitted
  std::vector<Pending> pending_;
};

void bind_plans(pybind11::module_& m, pybind11::class_<GroupObject>& group);
void bind_windows(pybind11::module_& m, pybind11::class_<GroupObject>& group);

}  // namespace eager::bind
