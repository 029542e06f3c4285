// Gradients in memory given beforehand.  The vjps that Python defines are those of test_tape.cpp.
#include <cstring>

#include "core/placement.h"
#include "core/tape.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

TensorRef leaf(const TensorRef& t) {
  t->meta().requires_grad = true;
  return t;
}
TensorRef total(const TensorRef& x) {
  Dims dims;
  for (size_t d = 0; d < x->ndim(); ++d) dims.push_back(int64_t(d));
  return call("sum", {x}, Attrs().ints(dims).integer(0));
}
void backward(const TensorRef& y, bool create_graph = false) {
  run_backward({y}, {}, {}, create_graph, create_graph, true);
}
const TensorRef& grad_of(const TensorRef& x) { return x->meta().grad; }

// A bucket with room for one gradient between two guards, which nothing may write.
struct Bucket {
  TensorRef flat, view;
  explicit Bucket(const TensorRef& t)
      : flat(floats({t->numel + 32}, [](int64_t) { return 7.0f; })) {
    view = Tensor::view(*flat, t->shape, contiguous_strides(t->shape), 16);
    set_grad_buffer(*t, view);
  }
  bool guarded() const {
    for (int64_t i = 0; i < 16; ++i)
      if (at(flat, i) != 7 || at(flat, flat->numel - 1 - i) != 7) return false;
    return true;
  }
};
bool counts(const TensorRef& t, uint64_t placed, uint64_t copied) {
  return t->autograd->buffer->placed == placed && t->autograd->buffer->copied == copied;
}
bool same(const TensorRef& a, const TensorRef& b) {
  if (!a || !b || !(a->shape == b->shape)) return false;
  for (int64_t i = 0; i < a->numel; ++i)
    if (at(a, i) != at(b, i)) return false;
  return true;
}

// Backward of `loss(leaf, other)` with and without a buffer gives the same bits.
template <class Loss>
void check_loss(const char* what, const Dims& shape, uint64_t placed, uint64_t copied, Loss loss) {
  const TensorRef plain = leaf(floats(shape)), x = leaf(floats(shape));
  const Bucket bucket(x);
  for (int round = 0; round < 3; ++round) {
    plain->meta().grad = x->meta().grad = nullptr;
    for (int times = 0; times < 2; ++times) {
      backward(loss(plain));
      backward(loss(x));
      if (!same(grad_of(plain), grad_of(x)))
        ::eager::test::failed(__FILE__, __LINE__, std::string("other values: ") + what);
    }
    CHECK(grad_of(x) == bucket.view && bucket.guarded());
  }
  if (!counts(x, 3 * placed, 3 * copied))
    ::eager::test::failed(__FILE__, __LINE__, std::string("other counts: ") + what);
}

std::vector<TensorRef> kept;
TensorRef keep(void*, const TensorRef& g) {
  kept.push_back(g);
  return nullptr;
}
TensorRef replace(void*, const TensorRef& g) { return call("neg", {g}); }
TensorRef throw_error(void*, const TensorRef&) { throw Failure("from a hook"); }

std::string calls;
TensorRef note_leaf(void* context, const TensorRef& t) {
  calls += static_cast<const char*>(context);
  CHECK(grad_of(t));
  return nullptr;
}

}  // namespace

TEST(gradients_are_computed_in_their_buffers) {
  const TensorRef rows = floats({5, 3}, [](int64_t i) { return float(i) - 4.5f; });
  const TensorRef row = floats({3}, [](int64_t i) { return float(i) + 0.5f; });
  check_loss("a loop", {5, 3}, 1, 0, [&](auto& x) { return total(call("mul", {x, rows})); });
  check_loss("a sum over rows", {3}, 1, 0, [&](auto& x) { return total(call("mul", {x, rows})); });
  check_loss("a sum over a column", {5, 1}, 1, 0,
             [&](auto& x) { return total(call("mul", {x, rows})); });
  check_loss("a sum of what passes", {3}, 1, 0,
             [&](auto& x) { return total(call("exp", {call("add", {rows, x})})); });
  check_loss("through a view", {3, 5}, 1, 0, [&](auto& x) {
    return total(call("mul", {call("reshape", {x}, Attrs().ints(Dims{5, 3})), rows}));
  });
  check_loss("through two views", {15}, 1, 0, [&](auto& x) {
    const TensorRef once = call("reshape", {x}, Attrs().ints(Dims{3, 5}));
    return total(call("mul", {call("reshape", {once}, Attrs().ints(Dims{5, 3})), rows}));
  });
  check_loss("one dimension more", {3}, 1, 0, [&](auto& x) {
    return total(call("mul", {call("reshape", {x}, Attrs().ints(Dims{1, 3})), rows}));
  });
  check_loss("no dimensions", {}, 1, 0, [&](auto& x) { return total(call("mul", {x, row})); });
}

TEST(several_contributions_add_up_in_the_buffer) {
  const TensorRef rows = floats({5, 3}, [](int64_t i) { return float(i) - 4.5f; });
  check_loss("a square", {5, 3}, 1, 0, [&](auto& x) { return total(call("mul", {x, x})); });
  check_loss("two uses", {5, 3}, 1, 0, [&](auto& x) {
    return total(call("add", {call("mul", {x, rows}), call("exp", {call("mul", {x, rows})})}));
  });
  check_loss("two views", {5, 3}, 1, 0, [&](auto& x) {
    const TensorRef a = call("reshape", {x}, Attrs().ints(Dims{15}));
    const TensorRef b = call("reshape", {x}, Attrs().ints(Dims{15}));
    return total(call("mul", {call("exp", {a}), call("exp", {b})}));
  });
}

TEST(gradients_that_others_see_are_copied) {
  // add hands on one gradient to both inputs
  const TensorRef other = leaf(floats({4}));
  check_loss("passed on", {4}, 0, 1, [&](auto& x) {
    return total(call("exp", {call("mul", {call("add", {x, other}), Tensor::scalar(0.1)})}));
  });
}

TEST(hooks_see_gradients_and_may_keep_or_replace_them) {
  const TensorRef x = leaf(floats({4})), w = floats({4}, [](int64_t i) { return float(i); });
  const Bucket bucket(x);
  const uint64_t id = add_hook(*x, keep, nullptr, nullptr);
  backward(total(call("mul", {x, w})));
  CHECK(counts(x, 1, 0) && same(kept.at(0), w) && same(grad_of(x), w));
  x->meta().grad = nullptr;
  backward(total(call("mul", {x, call("neg", {w})})));
  CHECK(same(kept.at(0), w));  // not overwritten
  CHECK(same(kept.at(1), call("neg", {w})) && same(grad_of(x), kept.at(1)) && bucket.guarded());
  kept.clear();
  remove_hook(id);
  add_hook(*x, replace, nullptr, nullptr);
  x->meta().grad = nullptr;
  backward(total(call("mul", {x, w})));
  CHECK(same(grad_of(x), call("neg", {w})) && grad_of(x) == bucket.view && counts(x, 2, 1));
}

TEST(a_failed_backward_gives_the_memory_back) {
  const TensorRef x = leaf(floats({4})), w = floats({4});
  const Bucket bucket(x);
  const uint64_t id = add_hook(*x, throw_error, nullptr, nullptr);
  bool thrown = false;
  try {
    backward(total(call("mul", {x, w})));
  } catch (const Failure&) {
    thrown = true;
  }
  CHECK(thrown && !grad_of(x));
  remove_hook(id);
  backward(total(call("mul", {x, w})));
  CHECK(counts(x, 1, 0) && same(grad_of(x), w));
}

TEST(differentiable_and_captured_gradients_stay_out_of_the_buffer) {
  const TensorRef x = leaf(floats({4})), w = floats({4});
  const Bucket bucket(x);
  const TensorRef g = run_backward({total(call("mul", {x, w}))}, {}, {x}, false, false, false)[0];
  CHECK(same(g, w) && !grad_of(x) && counts(x, 0, 0) && at(bucket.view, 0) == 7);
  backward(total(call("mul", {x, x})), true);
  CHECK(grad_of(x)->requires_grad() && !(grad_of(x)->storage == bucket.flat->storage));
  clear_history(*grad_of(x));
}

TEST(what_was_saved_from_the_buffer_is_found_out) {
  const TensorRef x = leaf(floats({4})), w = floats({4});
  const Bucket bucket(x);
  backward(total(call("mul", {x, w})));
  const TensorRef old = grad_of(x);
  const TensorRef loss = total(call("mul", {call("exp", {call("mul", {x, w})}), old}));
  x->meta().grad = nullptr;
  const TensorRef other = total(call("mul", {x, w}));
  backward(other);  // overwrites what the loss needs
  CHECK_FAILS(version, backward(loss));
}

TEST(buffers_that_do_not_fit_are_refused) {
  const TensorRef x = leaf(floats({2, 3}));
  CHECK_FAILS(shape, set_grad_buffer(*x, floats({3, 2})));
  CHECK_FAILS(dtype, set_grad_buffer(*x, longs({2, 3}, [](int64_t i) { return i; })));
  CHECK_FAILS(device, set_grad_buffer(*x, Tensor::empty({2, 3}, DType::f32, Device::meta)));
  CHECK_FAILS(value, set_grad_buffer(*x, Tensor::view(*floats({1}), {2, 3}, {0, 0}, 0)));
  CHECK_FAILS(value, set_grad_buffer(*x, Tensor::view(*floats({12}), {2, 3}, {6, 2}, 0)));
  CHECK_FAILS(value, set_grad_buffer(*x, Tensor::view(*x, {2, 3}, {3, 1}, 0)));
  CHECK_FAILS(autograd, set_grad_buffer(*floats({2, 3}), floats({2, 3})));
  CHECK_FAILS(autograd, set_grad_buffer(*call("neg", {x}), floats({2, 3})));
  set_grad_buffer(*x, transposed(floats({3, 2})));  // dense in another order
  const TensorRef w = floats({2, 3});
  backward(total(call("mul", {x, w})));
  CHECK(same(grad_of(x), w) && grad_of(x)->strides == Dims({1, 2}));
  set_grad_buffer(*x, nullptr);
  CHECK(!x->autograd->buffer && grad_of(x));
}

TEST(hooks_after_accumulation_and_after_backward) {
  const TensorRef a = leaf(floats({4})), b = leaf(floats({4}));
  const Bucket bucket(a);
  add_after_hook(*a, note_leaf, const_cast<char*>("a"), nullptr);
  const uint64_t id = add_after_hook(
      *b,
      [](void*, const TensorRef& t) -> TensorRef {
        CHECK(grad_of(t));
        after_backward([](void*) { calls += "!"; }, nullptr, [](void*) { calls += "."; });
        calls += "b";
        return nullptr;
      },
      nullptr, nullptr);
  backward(total(call("mul", {a, b})));
  CHECK(calls == "ab!." || calls == "ba!.");
  remove_hook(id);
  calls.clear();
  run_backward({total(call("mul", {a, b}))}, {}, {a}, false, false, true);
  CHECK(calls == "a");
  CHECK_FAILS(autograd, add_after_hook(*call("neg", {a}), note_leaf, nullptr, nullptr));
  CHECK_FAILS(autograd, after_backward(nullptr, nullptr, nullptr));
}
