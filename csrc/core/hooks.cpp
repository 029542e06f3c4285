// Hooks on gradients, and gradients retained by tensors that are no leaves.
#include <mutex>
#include <string>
#include <unordered_map>

#include "tape_internal.h"

namespace eager::core {
namespace {

// Which node holds a hook: an in-place change gives the tensor another node, but the hook stays
// with the value it was registered for.
std::mutex registry_mutex;
std::unordered_map<uint64_t, Node*>& registry() {
  static auto* map = new std::unordered_map<uint64_t, Node*>;  // outlives the last node
  return *map;
}

NodeExtras& extras_of(Node& node) {
  if (!node.extras) node.extras = new NodeExtras;
  return *node.extras;
}

Edge wanted_edge(Tensor& t, const char* what) {
  Edge edge = gradient_edge(t);
  if (!edge.node)
    fail(ErrorKind::autograd, what, "the tensor has no gradient", "a tensor that requires grad",
         "one of shape " + to_string(t.shape) + " that does not", "x.requires_grad_()");
  return edge;
}

}  // namespace

static uint64_t add_hook(Node& node, uint32_t output, HookFn fn, void* context,
                         void (*drop)(void*)) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  static uint64_t last_id = 0;
  extras_of(node).hooks.push_back({++last_id, output, fn, context, drop});
  registry()[last_id] = &node;
  return last_id;
}

uint64_t add_hook(Tensor& t, HookFn fn, void* context, void (*drop)(void*)) {
  const Edge edge = wanted_edge(t, "register_hook");
  return add_hook(*edge.node, edge.output, fn, context, drop);
}

uint64_t add_after_hook(Tensor& t, HookFn fn, void* context, void (*drop)(void*)) {
  const Edge edge = wanted_edge(t, "register_post_accumulate_grad_hook");
  if (t.autograd->node)
    fail(ErrorKind::autograd, "register_post_accumulate_grad_hook", "the tensor is not a leaf",
         "a leaf tensor that requires grad", "the result of " + std::string(edge.node->name()),
         "register_hook, which sees the gradient itself");
  return add_hook(*edge.node, Hook::kAfter, fn, context, drop);
}

void remove_hook(uint64_t id) {
  Hook removed{};
  {
    std::lock_guard<std::mutex> lock(registry_mutex);
    const auto found = registry().find(id);
    if (found == registry().end()) return;
    std::vector<Hook>& hooks = found->second->extras->hooks;
    for (size_t i = 0; i < hooks.size(); ++i) {
      if (hooks[i].id != id) continue;
      removed = hooks[i];
      hooks.erase(hooks.begin() + std::ptrdiff_t(i));
      break;
    }
    registry().erase(found);
  }
  if (removed.drop) removed.drop(removed.context);  // may call back: outside the lock
}

std::vector<void*> hook_contexts(const Node& node) {
  std::vector<void*> contexts;
  if (!node.extras) return contexts;
  for (const Hook& h : node.extras->hooks) contexts.push_back(h.context);
  return contexts;
}

void retain_grad(Tensor& t) {
  const Edge edge = wanted_edge(t, "retain_grad");
  AutogradMeta& meta = t.meta();
  if (!meta.node) return;
  meta.retains_grad = true;
  std::vector<Watched>& retained = extras_of(*edge.node).retained;
  for (const Watched& w : retained)
    if (w.tensor == &t) return;
  watch(*edge.node, t);
  retained.push_back({&t, &meta, edge.output});
}

void destroy_extras(Node& node) {
  NodeExtras* extras = std::exchange(node.extras, nullptr);
  for (const Watched& w : extras->retained) w.tensor->autograd->watcher = nullptr;
  {
    std::lock_guard<std::mutex> lock(registry_mutex);
    for (const Hook& h : extras->hooks) registry().erase(h.id);
  }
  for (const Hook& h : extras->hooks)
    if (h.drop) h.drop(h.context);
  delete extras;
}

void run_after_hooks(Node& node, const TensorRef& leaf) {
  std::vector<uint64_t> ids;
  for (const Hook& h : node.extras->hooks)
    if (h.output == Hook::kAfter) ids.push_back(h.id);
  for (uint64_t id : ids) {
    for (const Hook& h : node.extras->hooks) {
      if (h.id != id) continue;
      const Hook hook = h;  // it may add hooks, which moves them
      hook.fn(hook.context, leaf);
      break;
    }
  }
}

void run_hooks(Node& node, Tensors& grads, bool create_graph) {
  // A hook may add or remove hooks: go by ids, and look each one up when its turn comes.
  std::vector<uint64_t> ids;
  for (const Hook& h : node.extras->hooks) ids.push_back(h.id);
  for (uint64_t id : ids) {
    for (const Hook& h : node.extras->hooks) {
      if (h.id != id) continue;
      const Hook hook = h;
      if (hook.output >= grads.size() || !grads[hook.output]) break;
      if (TensorRef changed = hook.fn(hook.context, grads[hook.output])) {
        if (!(changed->shape == grads[hook.output]->shape))
          fail(ErrorKind::shape, "hook", "the hook changed the gradient's shape",
               to_string(grads[hook.output]->shape), to_string(changed->shape));
        if (changed->device != grads[hook.output]->device)
          fail(ErrorKind::device, "hook", "the hook changed the gradient's device",
               name(grads[hook.output]->device), name(changed->device));
        grads[hook.output] = changed;
      }
      break;
    }
  }
  // Adding may let other code run, which may drop the tensors or retain more of them.
  std::vector<std::pair<TensorRef, uint32_t>> retained;
  for (const Watched& w : node.extras->retained)
    if (w.output < grads.size() && grads[w.output])
      retained.emplace_back(TensorRef(w.tensor), w.output);
  for (const auto& [tensor, output] : retained) add_to_grad(*tensor, grads[output], create_graph);
}

}  // namespace eager::core
