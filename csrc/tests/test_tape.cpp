// The tape and the engine.  The vjps that are defined in Python have twins here for a few ops.
#include "core/tape.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

TensorRef constant(double v) { return Tensor::scalar(v); }

Tensors python_vjp(const Op& op, const Tensors& g, const Tensors& y, const Tensors& x,
                   const Attrs& attrs) {
  const std::string name = op.name;
  if (name == "add") return {g[0], g[0]};
  if (name == "sub") return {g[0], call("neg", {g[0]})};
  if (name == "neg") return {call("neg", {g[0]})};
  if (name == "mul") return {call("mul", {g[0], x[1]}), call("mul", {g[0], x[0]})};
  if (name == "exp") return {call("mul", {g[0], y[0]})};
  if (name == "clone") return {g[0]};
  if (name == "cast") return {g[0]};
  if (name == "expand") return {g[0]};  // the engine sums
  if (name == "sum") {
    Dims kept = x[0]->shape;
    for (int64_t d : AttrReader(attrs).ints()) kept[size_t(d)] = 1;
    const TensorRef r = call("reshape", {g[0]}, Attrs().ints(kept));
    return {call("expand", {r}, Attrs().ints(x[0]->shape))};
  }
  if (name == "reshape") return {call("reshape", {g[0]}, Attrs().ints(x[0]->shape))};
  if (name == "matmul")
    return {call("matmul", {g[0], transposed(x[1])}), call("matmul", {transposed(x[0]), g[0]})};
  if (name == "split") return {call("cat", g, Attrs().integer(1))};
  if (name == "slice_scatter") {
    AttrReader reader(attrs);
    const Dims starts = reader.ints(), sizes = reader.ints(), steps = reader.ints();
    const Attrs region = Attrs().ints(starts).ints(sizes).ints(steps);
    const TensorRef zero =
        cast(call("expand", {Tensor::scalar(0.0)}, Attrs().ints(sizes)), g[0]->dtype);
    return {call("slice_scatter", {g[0], zero}, region),
            call("slice", {g[0]}, Attrs(region).ints(Dims{}))};
  }
  throw Failure("no vjp of " + name);
}

struct InstallVjp {
  InstallVjp() { vjp_callback = python_vjp; }
} install_vjp;

TensorRef leaf(const TensorRef& t) {
  t->meta().requires_grad = true;
  return t;
}
TensorRef leaf(std::initializer_list<float> values) {
  return leaf(floats({int64_t(values.size())}, [&](int64_t i) { return values.begin()[i]; }));
}
TensorRef total(const TensorRef& x) {
  Dims dims;
  for (size_t d = 0; d < x->ndim(); ++d) dims.push_back(int64_t(d));
  return call("sum", {x}, Attrs().ints(dims).integer(0));
}
void backward(const TensorRef& y, bool keep_graph = false, bool create_graph = false) {
  run_backward({y}, {}, {}, keep_graph, create_graph, true);
}
TensorRef grad(const TensorRef& y, const TensorRef& x, bool create_graph = false) {
  return run_backward({y}, {}, {x}, create_graph, create_graph, false)[0];
}
bool equals(const TensorRef& t, std::initializer_list<double> values) {
  if (!t || t->numel != int64_t(values.size())) return false;
  for (int64_t i = 0; i < t->numel; ++i)
    if (!close(at(t, i), values.begin()[i])) return false;
  return true;
}
const TensorRef& grad_of(const TensorRef& x) { return x->meta().grad; }

}  // namespace

TEST(backward_through_elementwise_ops) {
  const TensorRef a = leaf({1, 2}), b = leaf({3, 5});
  backward(total(call("mul", {call("add", {a, b}), b})));
  CHECK(equals(grad_of(a), {3, 5}) && equals(grad_of(b), {7, 12}));
  // A second pass adds to the same memory.
  const TensorRef before = grad_of(a);
  backward(total(call("mul", {a, b})));
  CHECK(grad_of(a) == before && equals(before, {6, 10}));
}

TEST(gradients_are_summed_over_broadcast_dimensions) {
  const TensorRef a = leaf(floats({2, 1})), b = leaf(floats({3})), c = leaf(floats({}));
  backward(total(call("mul", {call("add", {a, b}), c})));
  CHECK((grad_of(a)->shape == Dims{2, 1}) && (grad_of(b)->shape == Dims{3}));
  CHECK(grad_of(c)->ndim() == 0);
  CHECK(equals(grad_of(b), {2 * at(c, 0), 2 * at(c, 0), 2 * at(c, 0)}));
}

TEST(gradients_have_the_inputs_dtype) {
  const TensorRef a = leaf(cast(floats({2}), DType::f16)), b = leaf(floats({2}));
  const TensorRef c = leaf(cast(floats({1}), DType::f64));
  backward(total(call("mul", {call("mul", {a, b}), c})));
  CHECK(grad_of(a)->dtype == DType::f16 && grad_of(b)->dtype == DType::f32);
  CHECK(grad_of(c)->dtype == DType::f64);
}

TEST(no_gradient_where_none_is_wanted) {
  const TensorRef a = leaf({1, 2}), b = floats({2});
  const TensorRef y = call("mul", {a, b});
  CHECK(y->autograd->node->next[1].node.get() == nullptr);
  backward(total(y));
  CHECK(!b->autograd);
  const NoGrad scope;
  CHECK(!call("mul", {a, a})->requires_grad());
}

TEST(gradients_do_not_alias) {
  const TensorRef a = leaf({1, 2}), b = leaf({3, 4});
  const TensorRef seed = floats({2}, [](int64_t i) { return float(i); });
  run_backward({call("add", {a, b})}, {seed}, {}, false, false, true);
  CHECK(!(grad_of(a)->storage == grad_of(b)->storage));
  CHECK(!(grad_of(a)->storage == seed->storage) && !(grad_of(b)->storage == seed->storage));
}

TEST(backward_frees_what_it_used) {
  const TensorRef a = leaf({1, 2});
  const TensorRef y = total(call("mul", {a, a}));
  backward(y, true);
  backward(y);
  CHECK(equals(grad_of(a), {4, 8}));
  CHECK_FAILS(autograd, backward(y));
  // Nothing was saved here, so nothing was freed.
  const TensorRef z = total(call("add", {a, a}));
  backward(z);
  backward(z);
}

TEST(changes_of_saved_values_are_found) {
  const TensorRef a = leaf({1, 2});
  const TensorRef x = call("add", {a, constant(1)});
  const TensorRef y = call("mul", {x, x}), e = call("exp", {a});
  dispatch(named("add"), {x, constant(1)}, {}, x.get());
  CHECK_FAILS(version, backward(total(y)));
  dispatch(named("mul"), {e, constant(2)}, {}, e.get());
  const TensorRef z = call("exp", {a});
  {
    const NoGrad scope;
    dispatch(named("add"), {z, constant(1)}, {}, z.get());
  }
  CHECK_FAILS(version, backward(total(z)));
  // Only the values that the wanted gradient reads count.
  const TensorRef w = call("add", {a, constant(0)});
  const TensorRef s = total(call("mul", {w, floats({2}, [](int64_t) { return 3.0f; })}));
  dispatch(named("add"), {w, constant(1)}, {}, w.get());
  backward(s);
}

TEST(in_place_ops_are_recorded) {
  const TensorRef a = leaf({1, 2}), w = leaf({5, 7});
  const TensorRef x = call("add", {a, constant(0)});
  dispatch(named("mul"), {x, w}, {}, x.get());  // needs the x that it overwrites
  dispatch(named("exp"), {x}, {}, x.get());     // needs its result
  const TensorRef y = total(call("mul", {x, constant(2)}));
  backward(y, true);
  const double e0 = 2 * std::exp(5.0), e1 = 2 * std::exp(14.0);
  CHECK(equals(grad_of(a), {5 * e0, 7 * e1}) && equals(grad_of(w), {1 * e0, 2 * e1}));
  CHECK(equals(grad(y, a, true), {5 * e0, 7 * e1}));  // the same by dispatched ops
  CHECK_FAILS(autograd, dispatch(named("add"), {a, constant(1)}, {}, a.get()));
  const TensorRef view = call("reshape", {x}, Attrs().ints(Dims{1, 2}));
  CHECK_FAILS(autograd, dispatch(named("add"), {view, constant(1)}, {}, view.get()));
  // The view's history does not know of a later change of x.
  dispatch(named("add"), {x, constant(1)}, {}, x.get());
  CHECK_FAILS(autograd, call("mul", {view, constant(1)}));
}

TEST(in_place_ops_on_constants) {
  const TensorRef w = leaf(floats({}, [](int64_t) { return 3.0f; }));
  const TensorRef x = floats({}, [](int64_t) { return 2.0f; });
  dispatch(named("mul"), {x, w}, {}, x.get());
  dispatch(named("add"), {x, w}, {}, x.get());
  backward(x);
  CHECK(at(x, 0) == 9 && equals(grad_of(w), {3}));
}

TEST(assignment_to_a_region) {
  const TensorRef a = leaf({1, 2, 3}), v = leaf({7});
  const TensorRef x = call("mul", {a, constant(2)});
  const Attrs region = Attrs().ints(Dims{1}).ints(Dims{1}).ints(Dims{1});
  dispatch(named("slice_scatter"), {x, v}, region, x.get());
  CHECK(equals(x, {2, 7, 6}));
  backward(total(call("mul", {x, constant(3)})));
  CHECK(equals(grad_of(a), {6, 0, 6}) && equals(grad_of(v), {3}));
}

TEST(overwriting_by_a_constant_ends_the_history) {
  const TensorRef a = leaf({1, 2});
  const TensorRef x = call("mul", {a, constant(2)});
  dispatch(named("clone"), {floats({2})}, {}, x.get());
  CHECK(!x->requires_grad());
}

TEST(missing_gradients_of_an_op_with_several_outputs) {
  const TensorRef a = leaf(floats({2, 3}));
  const Tensors parts = dispatch(named("split"), {a}, Attrs().ints(Dims{1, 2}).integer(1));
  backward(total(parts[1]));
  CHECK(equals(grad_of(a), {0, 1, 1, 0, 1, 1}));
}

TEST(seeds_are_checked) {
  const TensorRef a = leaf({1, 2});
  const TensorRef y = call("mul", {a, a});
  CHECK_FAILS(autograd, backward(y));
  CHECK_FAILS(shape, run_backward({y}, {floats({3})}, {}, true, false, true));
  const TensorRef wrong = longs({2}, [](int64_t) { return 1; });
  CHECK_FAILS(dtype, run_backward({y}, {wrong}, {}, true, false, true));
  CHECK_FAILS(autograd, backward(total(floats({2}))));
  const TensorRef f64 = cast(floats({2}, [](int64_t) { return 1.0f; }), DType::f64);
  run_backward({y}, {f64}, {}, true, false, true);
  CHECK(equals(grad_of(a), {2, 4}) && grad_of(a)->dtype == DType::f32);
}

TEST(grad_of_chosen_tensors) {
  const TensorRef a = leaf({1, 2}), b = leaf({3, 4}), c = leaf({0, 0});
  const TensorRef h = call("mul", {a, b});
  const TensorRef y = total(call("mul", {h, h}));
  const Tensors g = run_backward({y}, {}, {h, a, c, y}, true, false, false);
  CHECK(equals(g[0], {6, 16}) && equals(g[1], {18, 64}) && !g[2] && equals(g[3], {1}));
  CHECK(!a->meta().grad && !b->meta().grad);
  run_backward({y}, {}, {b}, true, false, true);
  CHECK(!a->meta().grad && equals(grad_of(b), {6, 32}));
  retain_grad(*h);
  run_backward({y}, {}, {a, h, a}, true, false, true);
  CHECK(equals(grad_of(a), {18, 64}) && equals(grad_of(h), {6, 16}));
  CHECK_FAILS(autograd, run_backward({y}, {}, {floats({2})}, true, false, false));
  // Several outputs, one inside the history of the other.
  const Tensors both = run_backward({y, total(h)}, {}, {h, a}, true, false, false);
  CHECK(equals(both[0], {7, 17}) && equals(both[1], {21, 68}));
}

TEST(second_order) {
  const TensorRef x = leaf({0.5f, 2});
  // x^3, then exp through its saved output.
  const TensorRef cube = total(call("mul", {call("mul", {x, x}), x}));
  const TensorRef d1 = grad(cube, x, true);
  CHECK(equals(d1, {0.75, 12}));
  const TensorRef d2 = grad(total(d1), x, true);
  CHECK(equals(d2, {3, 12}));
  CHECK(equals(grad(total(d2), x), {6, 6}));
  TensorRef e = grad(total(call("exp", {x})), x, true);  // the result of exp is gone by now
  e = grad(total(e), x, true);
  CHECK(equals(e, {std::exp(0.5), std::exp(2.0)}));
  backward(total(call("mul", {e, x})), false, true);
  CHECK(grad_of(x)->requires_grad());
  x->meta().grad = nullptr;
}

namespace {
int dropped = 0;
TensorRef doubled(void* count, const TensorRef& g) {
  ++*static_cast<int*>(count);
  return call("mul", {g, constant(2)});
}
TensorRef seen(void* count, const TensorRef&) {
  ++*static_cast<int*>(count);
  return {};
}
void drop(void*) { ++dropped; }
}  // namespace

TEST(hooks_and_retained_gradients) {
  int calls = 0;
  dropped = 0;
  const TensorRef a = leaf({1, 2});
  {
    const TensorRef h = call("mul", {a, a});
    const TensorRef y = total(h);
    const uint64_t first = add_hook(*h, doubled, &calls, drop);
    add_hook(*h, seen, &calls, drop);
    add_hook(*a, seen, &calls, drop);
    retain_grad(*h);
    retain_grad(*h);
    backward(y, true);
    CHECK(calls == 3 && equals(grad_of(h), {2, 2}) && equals(grad_of(a), {4, 8}));
    remove_hook(first);
    remove_hook(first);
    CHECK(dropped == 1);
    backward(y);
    CHECK(calls == 5 && equals(grad_of(h), {3, 3}));
  }
  CHECK(dropped == 2);
  CHECK_FAILS(autograd, add_hook(*floats({2}), seen, &calls, drop));
}

TEST(retained_gradient_of_a_tensor_that_is_gone) {
  const TensorRef a = leaf({1, 2});
  TensorRef h = call("exp", {a});
  const TensorRef y = total(h);
  retain_grad(*h);
  h = nullptr;
  backward(y);
  CHECK(equals(grad_of(a), {std::exp(1.0), std::exp(2.0)}));
  // And the other way round: the tensor outlives its place on the tape.
  TensorRef k = call("exp", {a});
  retain_grad(*k);
  clear_history(*k);
}

namespace {
// backward inside backward
struct Nested final : Node {
  TensorRef x;
  const char* name() const override { return "Nested"; }
  Tensors apply(Tensors grads, bool create_graph) override {
    const bool before = grad_enabled();
    set_grad_enabled(true);
    const TensorRef inner = leaf(contiguous(cast(cast(x, DType::f64), DType::f32)));
    const TensorRef y = total(call("mul", {inner, inner}));
    const TensorRef g = run_backward({y}, {}, {inner}, false, false, false)[0];
    set_grad_enabled(before);
    (void)create_graph;
    return {call("mul", {g, grads[0]})};
  }
};
}  // namespace

TEST(custom_nodes_may_call_backward) {
  const TensorRef a = leaf({1, 2});
  auto* nested = new Nested;
  const Ref<Node> node(nested);
  nested->x = a;
  node->next.push_back(gradient_edge(*a));
  const TensorRef y = floats({2});
  set_history({y}, node);
  backward(total(call("mul", {y, constant(3)})));
  CHECK(equals(grad_of(a), {6, 12}));
}

namespace {
struct Counter final : Recorder {
  int calls = 0, grads = 0;
  std::vector<TensorRef> alive;
  Tensors process(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* target) override {
    ++calls;
    recorder = nullptr;
    Tensors out = execute(op, in, attrs, target);
    recorder = this;
    // Every input is a known tensor: made under the recorder, or a leaf.
    for (const TensorRef& x : in) {
      bool known = x->weak;
      for (const TensorRef& t : alive) known |= t == x;
      CHECK(known);
    }
    for (const TensorRef& t : out) alive.push_back(t);
    return out;
  }
  void process_multi(const Op&, const std::vector<Tensors>&, const std::vector<Tensors>&) override {
  }
  void grad_written(Tensor&) override { ++grads; }
};
}  // namespace

TEST(a_recorder_sees_all_of_backward) {
  const TensorRef a = leaf({1, 2}), b = leaf({3, 4});
  Counter counter;
  counter.alive = {a, b};
  recorder = &counter;
  try {
    const TensorRef y = total(call("mul", {call("exp", {call("add", {a, b})}), b}));
    const int forward = counter.calls;
    CHECK(forward == 4);
    backward(y);
    recorder = nullptr;
    // full; reshape, expand; two mul; mul; add of b's two gradients; two clones
    CHECK(counter.calls == forward + 9 && counter.grads == 2);
  } catch (...) {
    recorder = nullptr;
    throw;
  }
  CHECK(equals(grad_of(a), {3 * std::exp(4.0), 4 * std::exp(6.0)}));
}

TEST(a_chain_of_a_million_nodes) {
  const TensorRef a = leaf({1, 2});
  TensorRef x = a;
  const Op& add = named("add");
  const TensorRef zero = constant(0);
  for (int i = 0; i < 1000000; ++i) x = binary(add, x, zero);
  backward(total(x), true);
  CHECK(equals(grad_of(a), {1, 1}));
  CHECK(equals(grad(total(x), a), {1, 1}));
  x = nullptr;
}

TEST(deep_tapes_through_saved_tensors_are_destroyed) {
  const TensorRef a = leaf({1, 1});
  TensorRef x = a;
  const Op& mul = named("mul");
  for (int i = 0; i < 300000; ++i) x = binary(mul, x, a);
  x = nullptr;
}
