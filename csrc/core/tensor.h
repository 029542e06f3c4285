// Tensor: a strided view of a Storage, with its place in the tape.
#pragma once
#include <atomic>
#include <string>

#include "dtype.h"
#include "error.h"
#include "ref.h"
#include "small.h"

namespace eager::core {

enum class Device : uint8_t { cpu, meta };  // meta: shape and dtype only, no memory
inline const char* name(Device d) { return d == Device::cpu ? "cpu" : "meta"; }

// A block of memory.  `version` counts in-place writes through any view of it.
struct Storage : Counted {
  uint32_t epoch = current_epoch();  // in which it was made; see next_epoch
  void* data = nullptr;  // 64-byte aligned when it comes from the allocator; null on meta
  size_t bytes = 0;
  uint32_t version = 0;
  uint32_t rebases = 0;  // those of them that the tape has recorded
  Device device = Device::cpu;
  // Set for foreign memory (NumPy, DLPack, mapped files): called once with `owner`.
  void (*release)(void* owner) = nullptr;
  void* owner = nullptr;
  bool readonly = false;
  bool owned = false;   // data comes from the allocator
  bool joined = false;  // and lies in one block with this header

  static Ref<Storage> allocate(size_t bytes, Device device);
  static Ref<Storage> wrap(void* data, size_t bytes, void (*release)(void*), void* owner);
  static void destroy(Storage*);

  // Begins a new epoch and returns it: storages of this epoch or a later one are younger.  A tracer
  // tells by it what existed before its run.
  static uint32_t next_epoch() { return epochs.fetch_add(1, std::memory_order_relaxed) + 1; }

 private:
  static uint32_t current_epoch() { return epochs.load(std::memory_order_relaxed); }
  static std::atomic<uint32_t> epochs;
};

struct GradBuffer;  // placement.h
struct Node;
struct Tensor;
using TensorRef = Ref<Tensor>;

// What only tensors that take part in differentiation have.
struct AutogradMeta {
  Ref<Node> node;         // made this tensor; null for leaves
  Ref<Node> accumulator;  // a leaf's sink (see tape.h); made when first used
  TensorRef grad;
  uint32_t output = 0;   // which output of `node`
  uint32_t rebases = 0;  // storage->rebases when `node` was set
  bool requires_grad = false;
  bool retains_grad = false;
  Node* watcher = nullptr;  // a node that points back at this tensor; see Node::forget
  void* hooks = nullptr;    // owned by csrc/bind
  Ref<GradBuffer> buffer;   // where a leaf's gradient shall live; see placement.h

  AutogradMeta();
  AutogradMeta(const AutogradMeta&) = delete;
  AutogradMeta& operator=(const AutogradMeta&) = delete;
  ~AutogradMeta();  // tape.cpp: tells the nodes that point at the tensor
};

struct Tensor : Counted {
  Ref<Storage> storage;
  Dims shape;
  Dims strides;        // in elements
  int64_t offset = 0;  // in elements
  int64_t numel = 0;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  bool weak = false;                 // a Python number: promotes by category only
  bool contiguous = true;            // row-major without gaps
  bool is_view = false;              // made by a view op from another tensor
  AutogradMeta* autograd = nullptr;  // owned; null until needed
  void* pyobj = nullptr;             // borrowed back pointer of csrc/bind

  char* data() const {
    return static_cast<char*>(storage->data) + offset * int64_t(item_size(dtype));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  size_t ndim() const { return shape.size(); }
  bool requires_grad() const;  // leaf flag, or has a node
  AutogradMeta& meta();        // makes it if needed

  static TensorRef empty(const Dims& shape, DType dtype, Device device = Device::cpu);
  static TensorRef view(const Tensor& base, Dims shape, Dims strides, int64_t offset);
  // Wraps `storage` as a contiguous tensor.
  static TensorRef over(Ref<Storage> storage, const Dims& shape, DType dtype);
  // 0-dim tensors of a Python number, weak: bool, int64, or float64, which promotes as if it had
  // the default dtype but keeps its digits for float64 operands.
  static TensorRef scalar(bool v);
  static TensorRef scalar(int64_t v);
  static TensorRef scalar(double v);
  static void destroy(Tensor*);  // never recurses along the tape
};

inline bool Tensor::requires_grad() const {
  return autograd && (autograd->requires_grad || autograd->node);
}

DType default_dtype();  // float32 unless set
void set_default_dtype(DType);

std::string to_string(const Dims&);  // "(2, 3)"
Dims contiguous_strides(const Dims& shape);
int64_t element_count(const Dims& shape);
TensorRef contiguous(const TensorRef& t);  // t itself, or a packed copy (outside tape and hook)
TensorRef cast(const TensorRef& t, DType dtype);  // likewise

}  // namespace eager::core
