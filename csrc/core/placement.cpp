#include "placement.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "allocator.h"
#include "kernels.h"
#include "tape.h"
#include "threadlocal.h"

namespace eager::core {
namespace {

EAGER_THREAD_LOCAL(static, const Tensor*, offered);

void drop_storage(void* owner) { Ref<Storage>::adopt(static_cast<Storage*>(owner)); }

struct Dim {
  int64_t size, stride;
};

// The dimensions that have more than one element, from the one that varies slowest in memory.
Small<Dim, 6> memory_order(const Tensor& t) {
  Small<Dim, 6> dims;
  for (size_t d = 0; d < t.ndim(); ++d)
    if (t.shape[d] != 1) dims.push_back({t.shape[d], t.strides[d]});
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
  return dims;
}

// Whether the elements fill a block of memory, each stored once.
bool is_dense(const Tensor& t) {
  int64_t expected = 1;
  const Small<Dim, 6> dims = memory_order(t);
  for (size_t d = dims.size(); d-- > 0;) {
    if (dims[d].stride != expected) return false;
    expected *= dims[d].size;
  }
  return true;
}

// A packed tensor of `shape` has the same sizes in the same order in memory as `place`.
bool fills(const Dims& shape, const Tensor& place) {
  size_t at = 0;
  const Small<Dim, 6> dims = memory_order(place);
  for (int64_t n : shape) {
    if (n == 1) continue;
    if (at == dims.size() || dims[at].size != n) return false;
    ++at;
  }
  return at == dims.size();
}

bool same_elements(const Tensor& a, const Tensor& b) {
  if (!(a.shape == b.shape) || a.dtype != b.dtype || a.data() != b.data()) return false;
  for (size_t d = 0; d < a.ndim(); ++d)
    if (a.shape[d] != 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

size_t bytes_of(const Tensor& t) { return size_t(t.numel) * item_size(t.dtype); }

TensorRef copy_of(const Tensor& t) {
  TensorRef copy = Tensor::empty(t.shape, t.dtype);
  copy_into(t, *copy);
  return copy;
}

}  // namespace

bool in_memory_of(const Tensor& t, const Tensor& block) {
  if (t.device != Device::cpu) return false;
  const char* begin = static_cast<const char*>(t.storage->data);
  return begin < block.data() + bytes_of(block) && block.data() < begin + t.storage->bytes;
}

bool is_lent(const Tensor& t) { return t.storage->release == drop_storage; }

TensorRef GradBuffer::lend() {
  if (writing || (lent_ && !lent_.unique())) return {};
  if (!lent_) {
    Storage* owner = Ref<Storage>(view->storage).release();
    lent_ = Storage::wrap(view->data(), bytes_of(*view), drop_storage, owner);
  }
  // Who saved what was in the memory finds out.
  ++view->storage->version;
  const TensorRef whole = Tensor::over(lent_, {view->numel}, view->dtype);
  TensorRef t = Tensor::view(*whole, view->shape, view->strides, 0);
  t->is_view = false;
  return t;
}

bool GradBuffer::holds(const Tensor& g, const Tensor& place, int holders) const {
  return g.storage == lent_ && same_elements(g, place) &&
         lent_->refs.load(std::memory_order_acquire) == 1 + holders;
}

void GradBuffer::reclaim() {
  if (!lent_ || lent_.unique()) return;
  const Ref<Storage> lent = std::exchange(lent_, Ref<Storage>());
  void* data = allocate(lent->bytes);
  std::memcpy(data, lent->data, lent->bytes);
  lent->data = data;
  lent->owned = true;
  drop_storage(std::exchange(lent->owner, nullptr));
  lent->release = nullptr;
}

TensorRef GradBuffer::settle(TensorRef g) {
  const TensorRef to = view;
  if (writing) return copy_of(*g);
  if (lent_ && g->storage == lent_ && same_elements(*g, *to)) {
    g = nullptr;
    reclaim();  // a hook may have kept it
    ++placed;
  } else {
    if (in_memory_of(*g, *to)) g = copy_of(*g);
    reclaim();
    copy_into(*g, *to);
    ++copied;
  }
  ++to->storage->version;
  return to;
}

void set_grad_buffer(Tensor& t, const TensorRef& view) {
  if (!view) {
    if (t.autograd) t.autograd->buffer = nullptr;
    return;
  }
  const char* what = "set_grad_buffer";
  if (!t.autograd || t.autograd->node || !t.autograd->requires_grad)
    fail(ErrorKind::autograd, what, "the tensor has no gradient that accumulates",
         "a leaf that requires grad",
         t.requires_grad() ? "a tensor with history" : "one that does not require grad");
  if (!(view->shape == t.shape))
    fail(ErrorKind::shape, what, "the memory does not have the tensor's shape", to_string(t.shape),
         to_string(view->shape));
  if (view->dtype != t.dtype)
    fail(ErrorKind::dtype, what, "the memory does not have the tensor's dtype", name(t.dtype),
         name(view->dtype));
  if (view->device != Device::cpu || t.device != Device::cpu)
    fail(ErrorKind::device, what, "the gradient has no memory", "tensors on cpu", "one on meta");
  if (view->storage->readonly || view->requires_grad() || !is_dense(*view))
    fail(ErrorKind::value, what, "the memory cannot hold a gradient",
         "a writable tensor without gradient whose elements fill a block of memory",
         view->storage->readonly ? "read-only memory"
         : view->requires_grad()
             ? "a tensor that requires grad"
             : "strides " + to_string(view->strides) + " for shape " + to_string(view->shape));
  if (in_memory_of(t, *view))
    fail(ErrorKind::value, what, "the memory is the tensor's own", "other memory",
         "a view of the same storage");
  t.autograd->buffer = Ref<GradBuffer>(new GradBuffer(view));
}

PlacementScope::PlacementScope(const Tensor* place) : before_(offered) { offered = place; }
PlacementScope::~PlacementScope() { offered = before_; }

TensorRef result_memory(const Dims& shape, DType dtype, Device device) {
  if (!offered || device != Device::cpu || offered->dtype != dtype || !fills(shape, *offered))
    return Tensor::empty(shape, dtype, device);
  return Tensor::over(std::exchange(offered, nullptr)->storage, shape, dtype);
}

}  // namespace eager::core
