// The tape: nodes recorded by dispatch, and the engine that walks them backwards.
#pragma once
#include <memory>
#include <vector>

#include "op.h"

namespace eager::core {

struct Edge {
  Ref<Node> node;       // null: this input needs no gradient
  uint32_t output = 0;  // which output of `node` the gradient belongs to
};

// What the tape keeps of a tensor whose data the vjp does not read.
struct Spec {
  Dims shape;
  DType dtype;
  Device device;
  bool weak = false;
};

struct NodeExtras;  // hooks and retained gradients; see hooks.cpp

struct Node : Counted {
  Small<Edge, 2> next;     // one per input
  Small<Spec, 1> outputs;  // filled by set_history()
  uint64_t sequence;       // grows with every node of a thread; accumulators have the largest
  bool released = false;   // backward has dropped the saved values
  NodeExtras* extras = nullptr;
  Node* doomed = nullptr;  // links nodes that wait to be destroyed

  Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  virtual ~Node();
  virtual const char* name() const = 0;
  // One gradient per output in (null: none arrived), one per input out (null: none).  The engine
  // sums them over broadcast dimensions, casts them, and drops those of inputs without an edge.
  // Not called if no gradient arrived at all.
  // `create_graph`: compute with dispatched ops; grad mode is then on, else off.
  virtual Tensors apply(Tensors grads, bool create_graph) = 0;
  // The same without create_graph, where places[i], if not null, has the memory that input i's
  // gradient shall be written to.  The node is free to give a gradient elsewhere.
  virtual Tensors apply_placed(Tensors grads, const Tensors& places);
  // For nodes whose one gradient is a view of the gradient that arrives: the view of `place` that
  // the latter must be for the former to be `place`.  Null: there is none.
  virtual TensorRef place_above(const TensorRef& place);
  virtual void release() {}  // drop saved values
  // An output tensor that names this node as its `watcher` dies, or gets another history.
  virtual void forget(const AutogradMeta*);
  static void destroy(Node*);  // iterative: never recurses along `next`
};

// A leaf's sink: adds what arrives to leaf.grad.
struct Accumulate;
Ref<Node> accumulator(Tensor& leaf);

// Called for the gradients of ops whose definition gives them only in Python, and whenever the
// gradient is itself recorded.  saved outputs/inputs that the vjp does not read are meta tensors.
using VjpCallback = Tensors (*)(const Op&, const Tensors& grads, const Tensors& outputs,
                                const Tensors& inputs, const Attrs&);
extern VjpCallback vjp_callback;
// Whether the op's vjp computes only the gradients that vjp_needs() tells.  Null: none does.
extern bool (*vjp_selects)(const Op&);
// While vjp_callback runs: bit i tells that input i's gradient is wanted (of inputs from the 32nd
// on, always).  A vjp may give nothing for the others.
uint32_t vjp_needs();

bool grad_enabled();  // thread local
void set_grad_enabled(bool);
class NoGrad {  // scope
 public:
  NoGrad() : before_(grad_enabled()) { set_grad_enabled(false); }
  ~NoGrad() { set_grad_enabled(before_); }

 private:
  bool before_;
};

// Appends an op to the tape; the caller (dispatch) has found that a gradient is wanted.  With
// `target` the call was in place: `out` holds target, whose version is already counted up, and
// `in` comes from keep_overwritten().
void record(const Op&, const Tensors& in, const Attrs&, const Tensors& out, Tensor* target);

// The inputs to hand to record() after an in-place call: those whose data the gradient reads and
// the op is about to overwrite are replaced by copies with the same history.
Tensors keep_overwritten(const Op&, const Tensors& in, const Tensor& target);

// Records `node` as the maker of `outputs` (null or non-floating ones stay outside).
void set_history(const Tensors& outputs, const Ref<Node>& node);
// Makes `t` a constant: forgets what made it.
void clear_history(Tensor& t);
Edge gradient_edge(Tensor& t);  // null node if t needs no gradient

// Hooks are called by the engine with (tensor gradient) and may replace it (null: they do not).
// add_hook throws Error(autograd) if t needs no gradient.  remove_hook accepts ids of hooks that
// are gone.
using HookFn = TensorRef (*)(void* context, const TensorRef& grad);
uint64_t add_hook(Tensor& t, HookFn fn, void* context, void (*drop)(void*));
void remove_hook(uint64_t id);
// The same for hooks that are called with the leaf whenever backward has changed its .grad; what
// they return is ignored.  Throws Error(autograd) unless t is a leaf that requires grad.
uint64_t add_after_hook(Tensor& t, HookFn fn, void* context, void (*drop)(void*));
std::vector<void*> hook_contexts(const Node&);  // for the garbage collector
// Makes backward store the gradient of a non-leaf in its .grad; nothing to do for a leaf.
void retain_grad(Tensor& t);

// torch.autograd.backward / grad.  `seeds` is empty or has one gradient per output; null stands
// for 1, for which the output must have one element.
// `inputs` empty: adds to .grad of every leaf.  Else only walks the nodes between, and returns
// one gradient per input (null where unreachable); with `accumulate` it adds them to the inputs'
// .grad as well.
// Topological by sequence number with dependency counts; an explicit heap, never the C stack.
Tensors run_backward(const Tensors& outputs, const Tensors& seeds, const Tensors& inputs,
                     bool keep_graph, bool create_graph, bool accumulate);

// Calls fn(context) when the outermost run_backward() of this thread has walked its tape, in the
// order of these calls, then drop(context).  If the walk fails it is only dropped.
// Throws Error(autograd) outside of run_backward().
void after_backward(void (*fn)(void*), void* context, void (*drop)(void*));

}  // namespace eager::core
