// Backward: walks the tape from outputs to leaves.
#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "placement.h"
#include "pool.h"
#include "tape_internal.h"
#include "threadlocal.h"

namespace eager::core {
namespace {

const Op& named_op(const char* name) {
  const Op* op = find_op(name);
  if (!op)
    fail(ErrorKind::internal, "backward", "an op that backward is made of is missing", name,
         "a registry without it");
  return *op;
}

// Index of every node that backward has seen.  Open addressing: the nodes of a tape are many and
// short-lived, and nothing is ever taken out.
class NodeMap {
 public:
  // The node's index; a new node gets `next`.
  uint32_t insert(Node* node, uint32_t next) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& s = slot(node);
    if (!s.node) {
      s = {node, next};
      ++size_;
    }
    return s.index;
  }
  // UINT32_MAX if it has not been seen.
  uint32_t find(Node* node) { return slots_.empty() ? UINT32_MAX : slot(node).index; }

 private:
  struct Slot {
    Node* node = nullptr;
    uint32_t index = UINT32_MAX;
  };
  Slot& slot(Node* node) {
    const size_t mask = slots_.size() - 1;
    size_t at = size_t((reinterpret_cast<uintptr_t>(node) >> 4) * 0x9e3779b97f4a7c15u >> 20);
    while (slots_[at &= mask].node && slots_[at].node != node) ++at;
    return slots_[at];
  }
  void grow() {
    std::vector<Slot> old(std::max<size_t>(32, slots_.size() * 2));
    old.swap(slots_);
    for (const Slot& s : old)
      if (s.node) slot(s.node) = s;
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

constexpr uint32_t kNone = UINT32_MAX;

struct Task {
  Node* node;
  uint32_t pending = 0;      // edges to this node whose gradients have not arrived
  uint32_t capture = kNone;  // first entry of Backward::captures_
  bool walk = true;          // apply it, do not only collect its gradients
  Small<TensorRef, 1> grads;
};

// Memory that a leaf's buffer lends to the op that computes the gradient of an edge.
struct Loan {
  TensorRef place;  // null: none
  Ref<GradBuffer> buffer;

  Loan() = default;
  Loan(TensorRef place, Ref<GradBuffer> lender) : place(std::move(place)) {
    if (!this->place) return;
    buffer = std::move(lender);
    buffer->writing = true;
  }
  Loan(Loan&&) = default;
  Loan& operator=(Loan&&) = delete;
  ~Loan() { close(nullptr); }

  // The op is done.  Unless `g` is what it has written there, and nobody else sees it, others keep
  // their results elsewhere.
  void close(const TensorRef& g) {
    if (!buffer) return;
    buffer->writing = false;
    const bool placed = g && g.unique() && buffer->holds(*g, *place, 2);
    place = nullptr;
    if (!placed) buffer->reclaim();
    buffer = nullptr;
  }
};

// What after_backward() was given during the thread's outermost walk.
class Callbacks;
EAGER_THREAD_LOCAL(static, Callbacks*, outermost);
class Callbacks {
 public:
  Callbacks() {
    if (!outermost) outermost = this;
  }
  ~Callbacks() {
    if (outermost == this) outermost = nullptr;
    for (const Callback& c : list_)
      if (c.drop) c.drop(c.context);
  }
  Callbacks(const Callbacks&) = delete;

  void add(void (*fn)(void*), void* context, void (*drop)(void*)) {
    list_.push_back({fn, context, drop});
  }
  void run() {  // which may add more
    for (size_t i = 0; i < list_.size(); ++i) list_[i].fn(list_[i].context);
  }

 private:
  struct Callback {
    void (*fn)(void*);
    void* context;
    void (*drop)(void*);
  };
  std::vector<Callback> list_;
};

// A gradient that the caller asked for.
struct Capture {
  size_t input;
  uint32_t output;
  uint32_t next;  // of the same node
};

class Backward {
 public:
  Backward(bool keep_graph, bool create_graph, bool accumulate)
      : keep_graph_(keep_graph), create_graph_(create_graph), accumulate_(accumulate) {}
  Tensors run(const Tensors& outputs, const Tensors& seeds, const Tensors& inputs);

 private:
  uint32_t task_of(Node* node);
  void seed(const Tensors& outputs, const Tensors& seeds);
  void discover();
  void capture(const Tensors& inputs);
  void prune();
  void ready(uint32_t task);
  void run_task(uint32_t task);
  void hand_out(const Task& task, const Tensors& grads);
  Loan borrow(const Edge& edge);
  Tensors apply(Node& node, Tensors grads, std::vector<Loan>& loans);
  void collect(Task& task, const Edge& edge, const Node& from, TensorRef gradient,
               const Tensor* place = nullptr);

  const bool keep_graph_, create_graph_, accumulate_;
  bool buffers_ = false;          // some leaf's gradient has its place in memory
  std::vector<Ref<Node>> roots_;  // hold everything below them
  std::vector<Task> tasks_;
  NodeMap index_;
  std::vector<std::pair<uint64_t, uint32_t>> heap_;  // (sequence, task)
  std::vector<Capture> captures_;
  Tensors captured_, inputs_;
  Callbacks callbacks_;
};

uint32_t Backward::task_of(Node* node) {
  const uint32_t index = index_.insert(node, uint32_t(tasks_.size()));
  if (index == tasks_.size()) {
    tasks_.push_back({});
    tasks_.back().node = node;
  }
  return index;
}

TensorRef checked_seed(const Tensor& y, const TensorRef& given) {
  if (!given) {
    if (y.numel != 1)
      fail(ErrorKind::autograd, "backward", "only one element has an implicit gradient",
           "a scalar, or a gradient for each output", "a tensor of shape " + to_string(y.shape),
           "y.sum().backward(), or y.backward(gradient)");
    return filled({y.shape, y.dtype, y.device}, 1);
  }
  if (!(given->shape == y.shape))
    fail(ErrorKind::shape, "backward", "the gradient does not fit the tensor", to_string(y.shape),
         to_string(given->shape));
  if (!is_floating(given->dtype))
    fail(ErrorKind::dtype, "backward", "the gradient is not floating", name(y.dtype),
         name(given->dtype));
  return given;
}

void Backward::seed(const Tensors& outputs, const Tensors& seeds) {
  if (!seeds.empty() && seeds.size() != outputs.size())
    fail(ErrorKind::value, "backward", "the number of gradients differs from that of tensors",
         std::to_string(outputs.size()), std::to_string(seeds.size()));
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Edge edge = gradient_edge(*outputs[i]);
    if (!edge.node)
      fail(ErrorKind::autograd, "backward", "output " + std::to_string(i) + " has no history",
           "a tensor computed from one that requires grad",
           "a tensor of shape " + to_string(outputs[i]->shape) + " that does not require grad",
           "x.requires_grad_() before the computation, outside of no_grad()");
    TensorRef g = checked_seed(*outputs[i], seeds.empty() ? TensorRef() : seeds[i]);
    roots_.push_back(edge.node);
    collect(tasks_[task_of(edge.node.get())], edge, *edge.node, std::move(g));
  }
}

// Counts the edges to every node that the roots reach.
void Backward::discover() {
  for (uint32_t i = 0; i < tasks_.size(); ++i) {  // grows while it runs
    for (const Edge& edge : tasks_[i].node->next) {
      if (!edge.node) continue;
      const uint32_t child = task_of(edge.node.get());
      ++tasks_[child].pending;
    }
    if (tasks_[i].node->sequence != UINT64_MAX) continue;
    const Tensor* leaf = static_cast<Accumulate*>(tasks_[i].node)->leaf;
    buffers_ |= leaf && leaf->autograd->buffer && !leaf->autograd->grad;
  }
}

void Backward::capture(const Tensors& inputs) {
  captured_.resize(inputs.size());
  inputs_ = inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Edge edge = gradient_edge(*inputs[i]);
    if (!edge.node)
      fail(ErrorKind::autograd, "grad", "input " + std::to_string(i) + " needs no gradient",
           "inputs that require grad",
           "a tensor of shape " + to_string(inputs[i]->shape) + " that does not",
           "x.requires_grad_() before the computation");
    const uint32_t task = index_.find(edge.node.get());
    if (task == kNone) continue;
    captures_.push_back({i, edge.output, tasks_[task].capture});
    tasks_[task].capture = uint32_t(captures_.size() - 1);
  }
}

// Keeps only the nodes on a way from the roots to a captured gradient.
void Backward::prune() {
  std::vector<uint32_t> order, left(tasks_.size());
  for (uint32_t i = 0; i < tasks_.size(); ++i) {
    left[i] = tasks_[i].pending;
    if (!left[i]) order.push_back(i);
    tasks_[i].pending = 0;
    tasks_[i].walk = false;
  }
  for (size_t k = 0; k < order.size(); ++k)
    for (const Edge& edge : tasks_[order[k]].node->next) {
      if (!edge.node) continue;
      const uint32_t child = index_.find(edge.node.get());
      if (--left[child] == 0) order.push_back(child);
    }
  for (size_t k = order.size(); k-- > 0;) {
    Task& t = tasks_[order[k]];
    for (const Edge& edge : t.node->next) {
      if (!edge.node) continue;
      const Task& child = tasks_[index_.find(edge.node.get())];
      t.walk |= child.walk || child.capture != kNone;
    }
  }
  for (const Task& t : tasks_) {
    if (!t.walk) continue;
    for (const Edge& edge : t.node->next)
      if (edge.node) ++tasks_[index_.find(edge.node.get())].pending;
  }
}

void Backward::ready(uint32_t task) {
  heap_.emplace_back(tasks_[task].node->sequence, task);
  std::push_heap(heap_.begin(), heap_.end());
}

// The gradient in the shape and dtype of what it belongs to.
TensorRef fitted(TensorRef g, const Spec& spec, const Node& from, bool create_graph) {
  const EngineOps& ops = engine_ops();
  const bool dispatched = dispatches(*g, create_graph);
  const auto run = [&](const Op& op, const Attrs& attrs) {
    g = (dispatched ? dispatch(op, {g}, attrs) : op.kernel(op, {g}, attrs, nullptr))[0];
  };
  if (!(g->shape == spec.shape)) {
    // Broadcasting repeated the input: sum over what it repeated.
    const size_t lead = g->ndim() - std::min(g->ndim(), spec.shape.size());
    bool fits = g->ndim() >= spec.shape.size();
    Dims dims;
    for (size_t d = 0; fits && d < g->ndim(); ++d) {
      if (d >= lead && g->shape[d] == spec.shape[d - lead]) continue;
      fits = d < lead || spec.shape[d - lead] == 1;
      dims.push_back(int64_t(d));
    }
    if (!fits)
      fail(ErrorKind::shape, from.name(), "the gradient does not fit the input",
           "shape " + to_string(spec.shape), to_string(g->shape));
    if (!dims.empty()) run(ops.sum, Attrs().ints(dims).integer(1));
    if (!(g->shape == spec.shape)) run(ops.reshape, Attrs().ints(spec.shape));
  }
  if (g->dtype != spec.dtype) {
    if (!is_floating(g->dtype))
      fail(ErrorKind::dtype, from.name(), "the gradient is not floating", name(spec.dtype),
           name(g->dtype));
    if (dispatched) {
      run(ops.cast, Attrs().integer(int64_t(spec.dtype)));
    } else {
      g = cast(g, spec.dtype);
    }
  }
  return g;
}

// The memory for what arrives over `edge`, if that ends up as the first gradient of a leaf which
// has a buffer, with nothing but views between.
Loan Backward::borrow(const Edge& edge) {
  Small<Node*, 4> views;
  const Edge* at = &edge;
  for (;; at = &at->node->next[0]) {
    Node& node = *at->node;
    const Task& task = tasks_[index_.find(&node)];
    const bool first = task.grads.size() <= at->output || !task.grads[at->output];
    if (!first || !task.walk || task.capture != kNone) return {};
    if (node.sequence == UINT64_MAX) break;
    if (views.size() == 4 || node.extras || node.next.size() != 1 || !node.next[0].node) return {};
    views.push_back(&node);
  }
  const auto& sink = static_cast<const Accumulate&>(*at->node);
  if (!sink.leaf || !sink.leaf->autograd->buffer || sink.leaf->autograd->grad) return {};
  const Ref<GradBuffer> buffer = sink.leaf->autograd->buffer;
  const Spec& spec = sink.outputs[0];
  if (!(buffer->view->shape == spec.shape) || buffer->view->dtype != spec.dtype) return {};
  TensorRef place = buffer->lend();
  for (size_t i = views.size(); place && i-- > 0;) place = views[i]->place_above(place);
  return {std::move(place), buffer};
}

Tensors Backward::apply(Node& node, Tensors grads, std::vector<Loan>& loans) {
  Tensors places;
  bool any = false;
  for (const Edge& edge : node.next) {
    loans.push_back(edge.node ? borrow(edge) : Loan());
    places.push_back(loans.back().place);
    any |= bool(places.back());
  }
  return any ? node.apply_placed(std::move(grads), places) : node.apply(std::move(grads), false);
}

void Backward::collect(Task& task, const Edge& edge, const Node& from, TensorRef g,
                       const Tensor* place) {
  const Spec& spec = edge.node->outputs[edge.output];
  // The sum over what was broadcast may be the op that fills the memory.
  PlacementScope offer(place && !(g->shape == spec.shape) && !in_memory_of(*g, *place) ? place
                                                                                       : nullptr);
  g = fitted(std::move(g), spec, from, create_graph_);
  if (task.grads.size() <= edge.output) task.grads.resize(edge.output + 1);
  TensorRef& slot = task.grads[edge.output];
  slot = slot ? add_gradients(std::move(slot), std::move(g), create_graph_) : std::move(g);
}

void Backward::hand_out(const Task& task, const Tensors& grads) {
  Small<bool, 4> stored(grads.size(), false);  // a tensor may be named twice
  for (uint32_t c = task.capture; c != kNone; c = captures_[c].next) {
    const Capture& wanted = captures_[c];
    const TensorRef& g = captured_[wanted.input] = grads[wanted.output];
    Tensor& t = *inputs_[wanted.input];
    if (!accumulate_ || !g || stored[wanted.output]) continue;
    stored[wanted.output] = true;
    const TensorRef keep(&t);
    // run_hooks() has stored what is retained.
    if (!t.autograd->retains_grad) add_to_grad(t, g, create_graph_);
    if (!t.autograd->node && task.node->extras) run_after_hooks(*task.node, keep);
  }
}

void Backward::run_task(uint32_t index) {
  Task& task = tasks_[index];
  Node& node = *task.node;
  Tensors grads(node.outputs.size());
  bool any = false;
  for (size_t i = 0; i < task.grads.size(); ++i) {
    any |= bool(task.grads[i]);
    grads[i] = std::move(task.grads[i]);
  }
  task.grads.clear();
  if (any && node.extras) run_hooks(node, grads, create_graph_);
  if (task.capture != kNone) hand_out(task, grads);
  if (!task.walk) return;
  Tensors results;
  std::vector<Loan> loans;
  if (any) {
    const bool place = buffers_ && !create_graph_ && !recorder && node.sequence != UINT64_MAX;
    results =
        place ? apply(node, std::move(grads), loans) : node.apply(std::move(grads), create_graph_);
    // Accumulators save nothing and serve every tape that their leaf is part of.
    if (!keep_graph_ && node.sequence != UINT64_MAX) {
      node.release();
      node.released = true;
    }
  }
  for (size_t i = 0; i < node.next.size(); ++i) {
    if (!node.next[i].node) continue;
    const Edge& edge = node.next[i];
    const uint32_t child = index_.find(edge.node.get());
    if (i < results.size() && results[i]) {
      Task& to = tasks_[child];
      collect(to, edge, node, std::move(results[i]),
              loans.empty() ? nullptr : loans[i].place.get());
      if (!loans.empty()) loans[i].close(to.grads[edge.output]);
    }
    if (--tasks_[child].pending == 0) ready(child);
  }
}

Tensors Backward::run(const Tensors& outputs, const Tensors& seeds, const Tensors& inputs) {
  seed(outputs, seeds);
  discover();
  if (!inputs.empty()) {
    capture(inputs);
    prune();
  }
  for (uint32_t i = 0; i < tasks_.size(); ++i)
    if (!tasks_[i].pending && (tasks_[i].walk || tasks_[i].capture != kNone)) ready(i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const uint32_t task = heap_.back().second;
    heap_.pop_back();
    run_task(task);
  }
  callbacks_.run();
  return captured_;
}

}  // namespace

const EngineOps& engine_ops() {
  static const EngineOps ops{named_op("add"),     named_op("sum"),  named_op("reshape"),
                             named_op("permute"), named_op("cast"), named_op("clone"),
                             named_op("full")};
  return ops;
}

bool dispatches(const Tensor& gradient, bool create_graph) {
  return create_graph || recorder || gradient.device == Device::meta;
}

// Attributes in the order of the op's schema.
TensorRef filled(const Spec& spec, double value) {
  if (spec.device == Device::meta) return Tensor::empty(spec.shape, spec.dtype, Device::meta);
  const Op& full = engine_ops().full;
  Attrs attrs;
  for (int i = 0; i < full.n_attrs; ++i) {
    switch (full.attr_types[i]) {
      case AttrType::floating:
        attrs.floating(value);
        break;
      case AttrType::ints:
        attrs.ints(spec.shape);
        break;
      default:
        attrs.integer(int64_t(spec.dtype));
    }
  }
  return recorder ? dispatch(full, {}, attrs)[0] : full.kernel(full, {}, attrs, nullptr)[0];
}

bool is_ours(const TensorRef& g) {
  const Storage& s = *g->storage;
  // The lender of memory for gradients counts as one that sees it, and does not look.
  if (is_lent(*g)) return g.unique() && s.refs.load(std::memory_order_acquire) == 2;
  // Memory of NumPy and other libraries has owners that the count does not show.
  return g.unique() && g->storage.unique() && g->contiguous && !s.release && !s.readonly;
}

TensorRef add_gradients(TensorRef a, TensorRef b, bool create_graph) {
  const Op& add = engine_ops().add;
  if (dispatches(*a, create_graph)) return dispatch(add, {a, b}, {})[0];
  const bool to_a = is_ours(a);
  if (!to_a && !is_ours(b)) return add.kernel(add, {a, b}, {}, nullptr)[0];
  elementwise_into(add, {a, b}, {}, {to_a ? a : b});
  return to_a ? a : b;
}

namespace {

// Large sums run without the interpreter lock: this keeps a second thread from adding to the same
// gradient meanwhile.
class LargeSum {
 public:
  explicit LargeSum(bool large) : lock_(*mutex(), std::defer_lock) {
    if (!large || lock_.try_lock()) return;
    LongWork wait(true);  // the other thread needs the interpreter lock to finish
    lock_.lock();
  }

 private:
  // A forked child must not inherit the mutex locked by a thread that it does not have.
  static std::mutex*& mutex() {
    static std::mutex* m = [] {
      pthread_atfork(nullptr, nullptr, [] { mutex() = new std::mutex; });
      return new std::mutex;
    }();
    return m;
  }
  std::unique_lock<std::mutex> lock_;
};

}  // namespace

void add_to_grad(Tensor& t, TensorRef g, bool create_graph) {
  const EngineOps& ops = engine_ops();
  // While kernels run, other threads may drop the tensor, or set or drop its gradient.
  const TensorRef keep(&t);
  const bool dispatched = dispatches(*g, create_graph);
  const Ref<GradBuffer> buffer = t.meta().grad || dispatched ? nullptr : t.meta().buffer;
  if (buffer && buffer->view->shape == g->shape && buffer->view->dtype == g->dtype) {
    g = buffer->settle(std::move(g));
  } else if (!t.meta().grad && (create_graph || !is_ours(g) || is_lent(*g))) {
    // Somebody else may hold this gradient, and later ones are added in place.
    g = (dispatched ? dispatch(ops.clone, {g}, {})
                    : ops.clone.kernel(ops.clone, {g}, {}, nullptr))[0];
  }
  const TensorRef grad = t.meta().grad;
  if (!grad) {
    t.meta().grad = std::move(g);
  } else if (create_graph) {
    TensorRef sum = dispatch(ops.add, {grad, g}, {})[0];
    t.meta().grad = std::move(sum);
  } else if (dispatched) {
    dispatch(ops.add, {grad, g}, {}, grad.get());
  } else {
    LargeSum alone(g->numel >= 1 << 18);
    elementwise_into(ops.add, {grad, g}, {}, {grad});
    ++grad->storage->version;
  }
  if (recorder) recorder->grad_written(t);
}

void after_backward(void (*fn)(void*), void* context, void (*drop)(void*)) {
  if (!outermost)
    fail(ErrorKind::autograd, "after_backward", "no backward is running on this thread",
         "a call from a hook on a gradient", "a call outside of backward");
  outermost->add(fn, context, drop);
}

Tensors run_backward(const Tensors& outputs, const Tensors& seeds, const Tensors& inputs,
                     bool keep_graph, bool create_graph, bool accumulate) {
  PlacementScope no_placement{nullptr};  // of a vjp that runs a backward of its own
  struct GradMode {
    bool before = grad_enabled();
    explicit GradMode(bool on) { set_grad_enabled(on); }
    ~GradMode() { set_grad_enabled(before); }
  } mode(create_graph);
  return Backward(keep_graph, create_graph, accumulate).run(outputs, seeds, inputs);
}

}  // namespace eager::core
