// The node that dispatch records for an op, and its gradients.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "allocator.h"
#include "kernels.h"
#include "placement.h"
#include "tape_internal.h"
#include "threadlocal.h"

namespace eager::core {
namespace {

EAGER_THREAD_LOCAL(static, uint32_t, wanted_gradients);

// What the node keeps of an input.
struct SavedInput {
  // The tensor itself, so that a recorder sees in backward what it saw in forward.  Null if no
  // wanted gradient reads it, and after release.
  TensorRef tensor;
  uint32_t version = 0;   // of its storage, when saved
  bool constant = false;  // needs no gradient and is not read: only shape and dtype matter
};

// An output that the vjp reads.  The node cannot own the tensor, which owns the node: it watches
// it, and keeps the memory to make another one of when the tensor has gone.
struct SavedOutput {
  Tensor* tensor = nullptr;  // null once it has gone
  const AutogradMeta* meta = nullptr;
  Ref<Storage> storage;
  int64_t offset = 0;
  uint32_t version = 0;
  std::unique_ptr<Dims> strides;  // null: contiguous
};

class OpNode final : public Node {
 public:
  OpNode(const Op& op, const Attrs& attrs) : op_(op) {
    if (!attrs.slots.empty()) attrs_ = std::make_unique<Attrs>(attrs);
  }
  ~OpNode() override { unwatch(); }

  static void* operator new(size_t bytes) { return allocate_object(bytes); }
  static void operator delete(void* p) noexcept { deallocate_object(p, sizeof(OpNode)); }

  const char* name() const override { return op_.name; }
  Tensors apply(Tensors grads, bool create_graph) override;
  Tensors apply_placed(Tensors grads, const Tensors& places) override;
  TensorRef place_above(const TensorRef& place) override;
  void release() override;
  void forget(const AutogradMeta*) override;

  // Adds the inputs' edges, and saves what the gradients need.  False: none is wanted.
  bool save_inputs(const Tensors& in);
  void save_outputs(const Tensors& out);

 private:
  const Attrs& attrs() const {
    static const Attrs none{};
    return attrs_ ? *attrs_ : none;
  }
  void unwatch();
  void check_kept() const;
  const TensorRef& input(size_t i) const;
  TensorRef output(size_t i);
  TensorRef recorded_input(size_t i) const;
  Tensors apply(Tensors grads, bool create_graph, const Tensors& places);
  Tensors generated(const TensorRef& g, const Tensors& places);
  Tensors python(const Tensors& grads, bool create_graph, const Tensors& places);
  Tensors call_vjp(const Tensors& grads, const Tensors& ys, const Tensors& xs, uint32_t wanted,
                   const Tensor* place);

  const Op& op_;
  std::unique_ptr<Attrs> attrs_;
  Small<SavedInput, 2> inputs_;
  Small<SavedOutput, 1> outputs_;
  std::vector<Spec> constants_;  // of constant inputs, unless their tensors are kept
  bool saves_ = false;
};

// The inputs whose data some wanted gradient reads (bit i); of variadic ops, bit 0 means all.
uint32_t read_inputs(const Op& op, uint32_t wanted) {
  if (!op.grads || !op.saves_inputs) return op.saves_inputs;
  uint32_t read = 0;
  for (int i = 0; i < op.inputs; ++i) {
    const GradLoop& rule = op.grads[i];
    if (!(wanted >> i & 1) || rule.mode != GradLoop::loop) continue;
    for (unsigned k = 0; k < rule.n_args; ++k)
      if (rule.args[k] >= 2) read |= 1u << (rule.args[k] - 2);
  }
  return read;
}

bool reads(const Op& op, uint32_t read, size_t input) {
  return read >> (op.inputs < 0 ? 0 : input) & 1;
}

bool OpNode::save_inputs(const Tensors& in) {
  uint32_t wanted = 0;
  bool any = false;
  for (size_t i = 0; i < in.size(); ++i) {
    next.push_back(gradient_edge(*in[i]));
    if (!next.back().node) continue;
    any = true;
    if (i < 32) wanted |= 1u << i;
  }
  if (!any) return false;
  const uint32_t read = read_inputs(op_, wanted);
  for (size_t i = 0; i < in.size(); ++i) {
    const TensorRef& x = in[i];
    if (reads(op_, read, i)) {
      inputs_.emplace_back(x, x->storage->version);
      saves_ = true;
    } else if (next[i].node) {
      inputs_.emplace_back();
    } else if (x->weak) {  // a number: smaller than its description
      inputs_.emplace_back(x, 0u, true);
    } else {
      inputs_.emplace_back(TensorRef(), 0u, true);
      constants_.push_back({x->shape, x->dtype, x->device, x->weak});
    }
  }
  return true;
}

void OpNode::save_outputs(const Tensors& out) {
  saves_ = true;
  for (size_t i = 0; i < out.size(); ++i) {
    Tensor& y = *out[i];
    SavedOutput& saved = outputs_.emplace_back();
    saved.storage = y.storage;
    saved.version = y.storage->version;
    saved.offset = y.offset;
    if (!y.contiguous) saved.strides = std::make_unique<Dims>(y.strides);
    if (!is_floating(y.dtype)) continue;  // has no history to tell us by
    watch(*this, y);
    saved.tensor = &y;
    saved.meta = y.autograd;
  }
}

void OpNode::unwatch() {
  for (SavedOutput& saved : outputs_)
    if (saved.tensor) saved.tensor->autograd->watcher = nullptr;
  outputs_ = Small<SavedOutput, 1>();
}

void OpNode::forget(const AutogradMeta* meta) {
  for (SavedOutput& saved : outputs_)
    if (saved.meta == meta) saved.tensor = nullptr;
  Node::forget(meta);
}

void OpNode::release() {
  for (SavedInput& saved : inputs_)
    if (!saved.constant) saved.tensor = nullptr;
  unwatch();
  // Retained gradients still need the watchers.
  if (extras)
    for (const Watched& w : extras->retained) w.tensor->autograd->watcher = this;
}

void OpNode::check_kept() const {
  if (!released || !saves_) return;
  fail(ErrorKind::autograd, op_.name, "backward a second time through the same computation",
       "saved values, which the first backward has freed", "none",
       "backward(retain_graph=True) the first time, or compute the result again");
}

[[noreturn]] void changed(const Op& op, const std::string& what, uint32_t then, uint32_t now) {
  fail(ErrorKind::version, op.name, "a tensor that its gradient needs was changed in place",
       what + " at version " + std::to_string(then), "version " + std::to_string(now),
       "clone() the tensor before changing it, or use the operation that is not in place");
}

// Kernels let other threads in, whose backward may free what this one has begun to read.
const TensorRef& OpNode::input(size_t i) const {
  check_kept();
  const SavedInput& saved = inputs_[i];
  if (saved.version != saved.tensor->storage->version)
    changed(op_, "input " + std::to_string(i) + " of shape " + to_string(saved.tensor->shape),
            saved.version, saved.tensor->storage->version);
  return saved.tensor;
}

TensorRef OpNode::output(size_t i) {
  check_kept();
  SavedOutput& saved = outputs_[i];
  if (saved.version != saved.storage->version)
    changed(op_, "output of shape " + to_string(outputs[i].shape), saved.version,
            saved.storage->version);
  if (saved.tensor && saved.meta->node.get() == this) return TensorRef(saved.tensor);
  const Spec& spec = outputs[i];
  TensorRef y =
      Tensor::view(*Tensor::over(saved.storage, spec.shape, spec.dtype), spec.shape,
                   saved.strides ? *saved.strides : contiguous_strides(spec.shape), saved.offset);
  y->is_view = false;
  if (is_floating(y->dtype)) {
    y->meta().node = Ref<Node>(this);
    y->meta().output = uint32_t(i);
  }
  return y;
}

TensorRef meta(const Spec& spec) {
  TensorRef t = Tensor::empty(spec.shape, spec.dtype, Device::meta);
  t->weak = spec.weak;
  return t;
}

// One zero, seen as a tensor of any shape.
TensorRef zeros(const Spec& spec) {
  TensorRef zero = Tensor::empty({}, spec.dtype);
  std::memset(zero->data(), 0, item_size(spec.dtype));
  TensorRef t = Tensor::view(*zero, spec.shape, Dims(spec.shape.size(), 0), 0);
  t->weak = spec.weak;
  return t;
}

// A saved input with the history it had: that of a leaf whose flag was changed since, or of a
// copy that was made because the op overwrote the input, is another one.
TensorRef OpNode::recorded_input(size_t i) const {
  const TensorRef& x = input(i);
  const Edge& edge = next[i];
  const AutogradMeta* meta = x->autograd;
  const Node* node = !meta                 ? nullptr
                     : meta->node          ? meta->node.get()
                     : meta->requires_grad ? meta->accumulator.get()
                                           : nullptr;
  if (node == edge.node.get() && (!node || !meta->node || meta->output == edge.output)) return x;
  TensorRef alias = Tensor::view(*x, x->shape, x->strides, x->offset);
  alias->is_view = false;
  alias->weak = x->weak;
  if (edge.node) {
    alias->meta().node = edge.node;
    alias->meta().output = edge.output;
  }
  return alias;
}

Tensors OpNode::apply(Tensors grads, bool create_graph) {
  return apply(std::move(grads), create_graph, {});
}

Tensors OpNode::apply_placed(Tensors grads, const Tensors& places) {
  return apply(std::move(grads), false, places);
}

TensorRef OpNode::place_above(const TensorRef& place) {
  const EngineOps& ops = engine_ops();
  if (next.size() != 1 || outputs.size() != 1) return {};
  if (&op_ == &ops.permute) return op_.kernel(op_, {place}, attrs(), nullptr)[0];
  if (&op_ != &ops.reshape) return {};
  TensorRef above = op_.kernel(op_, {place}, attrs(), nullptr)[0];
  return above->storage == place->storage ? above : TensorRef();
}

// What an op reads, its result must not overwrite.
bool reads_memory_of(const Tensors& args, const Tensor& place) {
  for (const TensorRef& t : args)
    if (t && in_memory_of(*t, place)) return true;
  return false;
}

Tensors OpNode::apply(Tensors grads, bool create_graph, const Tensors& places) {
  const Tensor* arrived = nullptr;
  for (const TensorRef& g : grads)
    if (g) arrived = g.get();
  // A vjp of several outputs reads all their gradients.
  for (size_t i = 0; i < grads.size(); ++i)
    if (!grads[i]) grads[i] = filled(outputs[i], 0);
  check_kept();
  if (op_.grads && grads.size() == 1 && !dispatches(*arrived, create_graph))
    return generated(grads[0], places);
  return python(grads, create_graph, places);
}

// A loop reads its operands at every index of the output.  That of a saved tensor has since changed
// if its data was exchanged (x.data = other), which the tape does not see.
void check_loop_operand(const Op& op, const Tensor& a, const Spec& y) {
  bool fits = a.device == Device::cpu && a.ndim() <= y.shape.size();
  if (fits && a.shape == y.shape) return;
  for (size_t d = 0, lead = y.shape.size() - a.ndim(); fits && d < a.ndim(); ++d)
    fits = a.shape[d] == 1 || a.shape[d] == y.shape[lead + d];
  if (!fits)
    fail(ErrorKind::version, op.name, "a tensor that its gradient needs was given other data",
         "a tensor on cpu that broadcasts to " + to_string(y.shape),
         "one of shape " + to_string(a.shape) + " on " + name(a.device),
         "assign to .data after the backward");
}

// Each gradient in one pass over memory by its generated loop.
Tensors OpNode::generated(const TensorRef& g, const Tensors& places) {
  const Spec& y = outputs[0];
  ScalarAttrs scalars(op_, attrs());
  Tensors result(next.size());
  for (size_t i = 0; i < next.size(); ++i) {
    const GradLoop& rule = op_.grads[i];
    if (!next[i].node || rule.mode == GradLoop::none) continue;
    if (rule.mode == GradLoop::pass) {
      result[i] = g;
      continue;
    }
    Tensors args;
    uint32_t bools = 0;
    for (unsigned k = 0; k < rule.n_args; ++k) {
      const uint8_t what = rule.args[k];
      args.push_back(what == 0 ? g : what == 1 ? output(0) : input(what - 2u));
      if (op_.promotion == Promotion::select && what == 2) bools |= 1u << k;
    }
    for (const TensorRef& a : args) check_loop_operand(op_, *a, y);
    // The cast to the input's dtype can ride along unless the engine sums first.
    const Spec& x = next[i].node->outputs[next[i].output];
    const Tensor* place = i < places.size() ? places[i].get() : nullptr;
    PlacementScope offer(place && !reads_memory_of(args, *place) ? place : nullptr);
    result[i] = result_memory(y.shape, x.shape == y.shape ? x.dtype : y.dtype);
    run_loops(op_.name, *rule.loops, args, y.dtype, bools, scalars.data(), {result[i]});
  }
  return result;
}

struct WantedScope {
  uint32_t before = wanted_gradients;
  ~WantedScope() { wanted_gradients = before; }
};

// Runs the vjp for the inputs in `wanted`; `place` is memory for the result of one op in it.
Tensors OpNode::call_vjp(const Tensors& grads, const Tensors& ys, const Tensors& xs,
                         uint32_t wanted, const Tensor* place) {
  WantedScope scope;
  wanted_gradients = wanted;
  PlacementScope offer(place && !reads_memory_of(grads, *place) && !reads_memory_of(ys, *place) &&
                               !reads_memory_of(xs, *place)
                           ? place
                           : nullptr);
  Tensors result = vjp_callback(op_, grads, ys, xs, attrs());
  if (result.size() != next.size())
    fail(ErrorKind::internal, op_.name, "the vjp gives the wrong number of gradients",
         std::to_string(next.size()), std::to_string(result.size()));
  return result;
}

Tensors OpNode::python(const Tensors& grads, bool create_graph, const Tensors& places) {
  if (!vjp_callback)
    fail(ErrorKind::internal, op_.name, "the gradient is defined in Python",
         "an interpreter that runs it", "none");
  Tensors ys, xs;
  for (size_t i = 0; i < outputs.size(); ++i)
    ys.push_back(op_.saves_output ? output(i) : meta(outputs[i]));
  size_t constant = 0;
  uint32_t wanted = 0;
  for (size_t i = 0; i < next.size(); ++i) {
    const Edge& edge = next[i];
    if (edge.node && i < 32) wanted |= 1u << i;
    const SavedInput& saved = inputs_[i];
    if (saved.tensor) {
      xs.push_back(saved.constant ? saved.tensor : create_graph ? recorded_input(i) : input(i));
      continue;
    }
    const Spec& spec = saved.constant ? constants_[constant++] : edge.node->outputs[edge.output];
    // What only unwanted gradients read has not been saved: they are computed from anything (that
    // a recorder knows the origin of).
    const bool stand_in = reads(op_, op_.saves_inputs, i) && spec.device == Device::cpu;
    const bool recorded = recorder && !spec.weak;
    xs.push_back(!stand_in ? meta(spec) : recorded ? filled(spec, 0) : zeros(spec));
  }
  // An op in the vjp must not take the place of another gradient for its result: either there is
  // only one gradient, or the vjp runs once for each that has a place.
  size_t edges = 0, last = 0;
  for (size_t i = 0; i < next.size(); ++i)
    if (next[i].node) ++edges, last = i;
  if (!places.empty() && edges == 1) return call_vjp(grads, ys, xs, wanted, places[last].get());
  if (places.empty() || !vjp_selects || !vjp_selects(op_) || next.size() > 32)
    return call_vjp(grads, ys, xs, wanted, nullptr);
  Tensors results(next.size());
  for (size_t i = 0; i < next.size(); ++i) {
    if (!places[i]) continue;
    results[i] = call_vjp(grads, ys, xs, 1u << i, places[i].get())[i];
    wanted &= ~(1u << i);
  }
  if (!wanted) return results;
  Tensors others = call_vjp(grads, ys, xs, wanted, nullptr);
  for (size_t i = 0; i < next.size(); ++i)
    if (wanted >> i & 1) results[i] = std::move(others[i]);
  return results;
}

}  // namespace

Tensors Node::apply_placed(Tensors grads, const Tensors&) { return apply(std::move(grads), false); }
TensorRef Node::place_above(const TensorRef&) { return {}; }

bool (*vjp_selects)(const Op&) = nullptr;

uint32_t vjp_needs() { return wanted_gradients; }

void record(const Op& op, const Tensors& in, const Attrs& attrs, const Tensors& out,
            Tensor* target) {
  auto* node = new OpNode(op, attrs);
  Ref<Node> owner(node);
  if (!node->save_inputs(in)) return;
  if (target) ++target->storage->rebases;
  for (size_t i = 0; i < out.size(); ++i) {
    Tensor& y = *out[i];
    node->outputs.emplace_back(y.shape, y.dtype, y.device);
    if (!is_floating(y.dtype)) continue;
    add_history(y, uint32_t(i), i + 1 == out.size() ? std::move(owner) : owner);
  }
  if (op.saves_output) node->save_outputs(out);
}

Tensors keep_overwritten(const Op& op, const Tensors& in, const Tensor& target) {
  uint32_t wanted = 0;
  for (size_t i = 0; i < in.size() && i < 32; ++i)
    if (in[i]->requires_grad()) wanted |= 1u << i;
  const uint32_t read = read_inputs(op, wanted);
  Tensors kept = in;
  for (size_t i = 0; i < in.size(); ++i) {
    const TensorRef& x = in[i];
    if (!reads(op, read, i) || !(x->storage == target.storage)) continue;
    kept[i] = Tensor::empty(x->shape, x->dtype, x->device);
    kept[i]->weak = x->weak;
    if (x->device == Device::cpu) copy_into(*x, *kept[i]);
    if (Edge edge = gradient_edge(*x); edge.node) {
      kept[i]->meta().node = edge.node;
      kept[i]->meta().output = edge.output;
    }
  }
  return kept;
}

}  // namespace eager::core
