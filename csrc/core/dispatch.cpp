#include <string>

#include "elementwise.h"
#include "kernels.h"
#include "placement.h"
#include "tape.h"

namespace eager::core {

// The generated table (op_table.cpp).
extern const Op kOps[];
extern const int kOpCount;
extern const char kRegistryHash[];

EAGER_THREAD_LOCAL(, Recorder*, recorder);
Kernel foreign_kernel = nullptr;

const Op& op(uint16_t id) { return kOps[id]; }
int op_count() { return kOpCount; }
const char* registry_hash() { return kRegistryHash; }

const Op* find_op(const char* name) {
  for (int i = 0; i < kOpCount; ++i)
    if (!std::strcmp(kOps[i].name, name)) return &kOps[i];
  return nullptr;
}

namespace {

const Attrs kNoAttrs{};

void check_inputs(const Op& op, const Tensors& in) {
  if (op.inputs >= 0 ? in.size() != size_t(op.inputs) : in.empty()) {
    fail(ErrorKind::value, op.name, "wrong number of tensors",
         op.inputs >= 0 ? std::to_string(op.inputs) : "at least 1", std::to_string(in.size()));
  }
  // 0-dim tensors go along with any device, as Python numbers do.
  const Tensor* cpu = nullptr;
  const Tensor* meta = nullptr;
  for (const TensorRef& t : in) {
    if (t->device == Device::meta) {
      meta = t.get();
    } else if (t->ndim() > 0) {
      cpu = t.get();
    }
  }
  if (cpu && meta) {
    fail(ErrorKind::device, op.name, "the tensors are on different devices", "one device",
         "cpu and meta", "x.to(device)");
  }
}

bool any_requires_grad(const Tensors& in) {
  for (const TensorRef& t : in)
    if (t->requires_grad()) return true;
  return false;
}

bool wants_grad(const Op& op, const Tensors& in) {
  return op.differentiable && any_requires_grad(in) && grad_enabled();
}

bool any_floating(const Tensors& out) {
  for (const TensorRef& t : out)
    if (is_floating(t->dtype)) return true;
  return false;
}

// Puts the op's result into `target`.
void compute_into(const Op& op, const Tensors& in, const Attrs& attrs, Tensor& target) {
  const TensorRef out(&target);
  if (op.outputs != 1) {
    fail(ErrorKind::value, op.name, "an op with several results cannot run in place", "one result",
         op.outputs ? std::to_string(op.outputs) : "as many as `sizes` has values");
  }
  if (op.kind == Kind::elementwise && op.loops) {
    if (in.size() == 1 || in.size() == 2) {
      const Tensor* second = in.size() == 2 ? in[1].get() : nullptr;
      if (fast_elementwise(op, *in[0], second, &target)) return;
    }
    elementwise_into(op, in, attrs, {out});
    return;
  }
  TensorRef result = op.kernel(op, in, attrs, &target)[0];
  if (result == out) return;
  check_target(op, result->shape, result->dtype, target);
  if (target.device == Device::meta) return;
  if (overlaps(*result, target)) {
    TensorRef packed = Tensor::empty(result->shape, result->dtype);
    copy_into(*result, *packed);
    result = packed;
  }
  copy_into(*result, target);
}

Tensors execute_in_place(const Op& op, const Tensors& in, const Attrs& attrs, Tensor& target) {
  check_writable(op.name, target);
  for (const TensorRef& t : in) {
    if (t->device == Device::cpu || target.device == Device::meta) continue;
    fail(ErrorKind::device, op.name, "a meta tensor has no elements to write", "tensors on cpu",
         "shape " + to_string(t->shape) + " on meta");
  }
  const TensorRef keep(&target);
  const bool recording = grad_enabled();
  const bool wants = wants_grad(op, in) && is_floating(target.dtype);
  if (recording && target.is_view && (wants || target.requires_grad())) {
    fail(ErrorKind::autograd, op.name, "in-place on a view while a gradient is recorded",
         "a tensor that owns its elements", "a view of another tensor",
         "assign to the base (base[index] = value), or compute out of place");
  }
  const Tensors kept = wants ? keep_overwritten(op, in, target) : Tensors();
  compute_into(op, in, attrs, target);
  if (target.storage) ++target.storage->version;
  if (wants) {
    record(op, kept, attrs, {keep}, &target);
  } else if (recording && target.requires_grad()) {
    // Overwritten by something without a gradient: no longer a result of its old history.
    clear_history(target);
  }
  return {keep};
}

}  // namespace

void check_writable(const char* op, Tensor& target) {
  if (target.storage && target.storage->readonly) {
    fail(ErrorKind::value, op, "the tensor's memory is read-only", "writable memory",
         "a tensor over a read-only buffer", "x.clone()");
  }
  if (target.requires_grad() && !target.autograd->node && grad_enabled()) {
    fail(ErrorKind::autograd, op, "in-place on a leaf that requires grad",
         "a tensor that does not require grad, or grad mode off", "a leaf with requires_grad=True",
         "with eager.no_grad(): ...");
  }
  for (size_t d = 0; d < target.ndim(); ++d) {
    if (target.strides[d] == 0 && target.shape[d] > 1) {
      fail(ErrorKind::value, op, "several elements of the tensor share one place in memory",
           "a tensor whose elements are apart", "an expanded tensor", "x.clone()");
    }
  }
}

Tensors execute(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* target) {
  check_inputs(op, in);
  if (target) return execute_in_place(op, in, attrs, *target);
  Tensors out = op.kernel(op, in, attrs, nullptr);
  if (wants_grad(op, in) && any_floating(out)) record(op, in, attrs, out, nullptr);
  return out;
}

Tensors dispatch(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* target) {
  if (recorder) return recorder->process(op, in, attrs, target);
  return execute(op, in, attrs, target);
}

namespace {

// Tensors that the caller keeps alive, without counting references.
class Borrowed {
 public:
  explicit Borrowed(std::initializer_list<Tensor*> tensors) {
    for (Tensor* t : tensors) list_.push_back(TensorRef::adopt(t));
  }
  ~Borrowed() {
    for (TensorRef& t : list_) t.release();
  }
  Borrowed(const Borrowed&) = delete;
  operator const Tensors&() const { return list_; }

 private:
  Tensors list_;
};

}  // namespace

TensorRef unary(const Op& op, const TensorRef& a) {
  if (!recorder) {
    if (TensorRef out = fast_elementwise(op, *a, nullptr, nullptr)) {
      if (a->requires_grad() && op.differentiable && grad_enabled() && is_floating(out->dtype)) {
        record(op, Borrowed{a.get()}, kNoAttrs, Borrowed{out.get()}, nullptr);
      }
      return out;
    }
  }
  return dispatch(op, {a}, kNoAttrs)[0];
}

TensorRef binary(const Op& op, const TensorRef& a, const TensorRef& b) {
  if (!recorder) {
    if (TensorRef out = fast_elementwise(op, *a, b.get(), nullptr)) {
      if ((a->requires_grad() || b->requires_grad()) && op.differentiable && grad_enabled() &&
          is_floating(out->dtype)) {
        record(op, Borrowed{a.get(), b.get()}, kNoAttrs, Borrowed{out.get()}, nullptr);
      }
      return out;
    }
  }
  return dispatch(op, {a, b}, kNoAttrs)[0];
}

Tensors foreign_trampoline(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out) {
  if (!foreign_kernel) {
    fail(ErrorKind::internal, op.name, "the op is implemented in Python, which is not attached",
         "the Python extension", "the C++ core alone");
  }
  // What the implementation calls is neither recorded nor put on the tape.
  struct Beneath {
    Recorder* before = recorder;
    NoGrad no_grad;
    PlacementScope no_placement{nullptr};
    Beneath() { recorder = nullptr; }
    ~Beneath() { recorder = before; }
  } beneath;
  return foreign_kernel(op, in, attrs, out);
}

}  // namespace eager::core
