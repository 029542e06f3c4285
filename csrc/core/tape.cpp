// Nodes, edges and history.
#include "tape.h"

#include <atomic>
#include <string>

#include "allocator.h"
#include "placement.h"
#include "tape_internal.h"
#include "threadlocal.h"

namespace eager::core {
namespace {

// Inverted, so that zero-initialised storage means "enabled".
EAGER_THREAD_LOCAL(static, bool, grad_disabled);
EAGER_THREAD_LOCAL(static, uint64_t, last_sequence);
EAGER_THREAD_LOCAL(static, bool, destroying);
EAGER_THREAD_LOCAL(static, Node*, doomed_nodes);

}  // namespace

VjpCallback vjp_callback = nullptr;

bool grad_enabled() { return !grad_disabled; }
void set_grad_enabled(bool on) { grad_disabled = !on; }

Node::Node() : sequence(++last_sequence) {}

Node::~Node() {
  if (extras) destroy_extras(*this);
}

void Node::forget(const AutogradMeta* meta) {
  if (!extras) return;
  for (size_t i = extras->retained.size(); i-- > 0;)
    if (extras->retained[i].meta == meta)
      extras->retained.erase(extras->retained.begin() + std::ptrdiff_t(i));
}

// Destroying a node drops its edges and saved tensors, whose nodes arrive here again: they wait
// in a list until the outermost call has a stack to spare.
void Node::destroy(Node* node) {
  node->doomed = doomed_nodes;
  doomed_nodes = node;
  if (destroying) return;
  destroying = true;
  while (Node* next = doomed_nodes) {
    doomed_nodes = next->doomed;
    delete next;
  }
  destroying = false;
}

AutogradMeta::AutogradMeta() = default;

AutogradMeta::~AutogradMeta() {
  if (watcher) watcher->forget(this);
  if (accumulator) static_cast<Accumulate&>(*accumulator).leaf = nullptr;
}

void watch(Node& node, Tensor& t) {
  AutogradMeta& meta = *t.autograd;
  if (meta.watcher && meta.watcher != &node) meta.watcher->forget(&meta);
  meta.watcher = &node;
}

void add_history(Tensor& t, uint32_t output, Ref<Node> node) {
  AutogradMeta& meta = t.meta();
  if (meta.watcher) {
    meta.watcher->forget(&meta);
    meta.watcher = nullptr;
  }
  meta.node = std::move(node);
  meta.output = output;
  meta.rebases = t.storage->rebases;
  if (meta.retains_grad) retain_grad(t);
}

void set_history(const Tensors& outputs, const Ref<Node>& node) {
  node->outputs.clear();
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i]) {
      node->outputs.emplace_back(Dims(), DType::f32, Device::cpu);
      continue;
    }
    Tensor& t = *outputs[i];
    node->outputs.emplace_back(t.shape, t.dtype, t.device);
    if (is_floating(t.dtype)) add_history(t, uint32_t(i), node);
  }
}

void clear_history(Tensor& t) {
  if (!t.autograd) return;
  AutogradMeta& meta = *t.autograd;
  if (meta.watcher) {
    meta.watcher->forget(&meta);
    meta.watcher = nullptr;
  }
  meta.node = nullptr;
  meta.output = 0;
  meta.requires_grad = false;
  meta.retains_grad = false;
}

Edge gradient_edge(Tensor& t) {
  AutogradMeta* meta = t.autograd;
  if (!meta) return {};
  if (!meta->node) return meta->requires_grad ? Edge{accumulator(t), 0} : Edge{};
  if (t.is_view && meta->rebases != t.storage->rebases)
    fail(ErrorKind::autograd, meta->node->name(),
         "the tensor that this view was taken of has since been changed in place",
         "views taken after the last in-place change that the tape recorded",
         "a view of shape " + to_string(t.shape) + " taken before it",
         "take the view again, or clone() it before the change");
  return {meta->node, meta->output};
}

Accumulate::Accumulate(Tensor& t) : leaf(&t) {
  sequence = UINT64_MAX;  // runs as soon as its gradient is complete
  outputs.emplace_back(t.shape, t.dtype, t.device);
}

Tensors Accumulate::apply(Tensors grads, bool create_graph) {
  if (!leaf) return {};
  const TensorRef keep(leaf);
  add_to_grad(*keep, std::move(grads[0]), create_graph);
  if (extras) run_after_hooks(*this, keep);
  return {};
}

Ref<Node> accumulator(Tensor& leaf) {
  AutogradMeta& meta = leaf.meta();
  if (!meta.accumulator) {
    meta.accumulator = Ref<Node>(new Accumulate(leaf));
  } else {
    // The leaf's data may have been exchanged for data of another shape.
    Spec& spec = meta.accumulator->outputs[0];
    if (!(spec.shape == leaf.shape) || spec.dtype != leaf.dtype)
      spec = {leaf.shape, leaf.dtype, leaf.device};
  }
  return meta.accumulator;
}

}  // namespace eager::core
