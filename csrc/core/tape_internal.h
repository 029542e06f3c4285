// What the files of the tape share: tape.cpp, op_node.cpp, hooks.cpp, engine.cpp.
#pragma once
#include <vector>

#include "tape.h"

namespace eager::core {

// A leaf's sink.  The leaf owns it; tapes that end in it keep it alive without the leaf.
struct Accumulate final : Node {
  explicit Accumulate(Tensor& leaf);
  const char* name() const override { return "AccumulateGrad"; }
  Tensors apply(Tensors grads, bool create_graph) override;

  Tensor* leaf;  // null once it is destroyed
};

// Makes `node` the maker of `t`.
void add_history(Tensor& t, uint32_t output, Ref<Node> node);

// A tensor that a node points back at.  The tensor's `watcher` is then that node, which the
// tensor tells when it goes.
struct Watched {
  Tensor* tensor = nullptr;
  const AutogradMeta* meta = nullptr;
  uint32_t output = 0;
};
void watch(Node& node, Tensor& t);  // makes `node` the watcher; an earlier one forgets t

struct Hook {
  static constexpr uint32_t kAfter = UINT32_MAX;  // as `output`: see add_after_hook
  uint64_t id;
  uint32_t output;
  HookFn fn;
  void* context;
  void (*drop)(void*);
};
struct NodeExtras {
  std::vector<Hook> hooks;
  std::vector<Watched> retained;
};
void destroy_extras(Node&);
// Runs the hooks on the gradients that arrived, then stores those that are retained.
void run_hooks(Node&, Tensors& grads, bool create_graph);
void run_after_hooks(Node& accumulator, const TensorRef& leaf);

// Whether `gradient` can be changed or kept: nobody else sees its memory.
bool is_ours(const TensorRef& gradient);
// Adds `g` to t.grad.
void add_to_grad(Tensor& t, TensorRef g, bool create_graph);
// The sum of two gradients, in the memory of one of them where possible.
TensorRef add_gradients(TensorRef a, TensorRef b, bool create_graph);
// Whether gradients are computed by dispatched ops: they are recorded, or seen by a recorder, or
// have no data.
bool dispatches(const Tensor& gradient, bool create_graph);
TensorRef filled(const Spec&, double value);

// The ops that the engine itself uses, by name.
struct EngineOps {
  const Op &add, &sum, &reshape, &permute, &cast, &clone, &full;
};
const EngineOps& engine_ops();

}  // namespace eager::core
