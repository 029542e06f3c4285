#include "core/tape.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

TensorRef into(const char* name, const Tensors& in, const TensorRef& target) {
  return dispatch(named(name), in, {}, target.get())[0];
}

struct Counter final : Recorder {
  int calls = 0, multi = 0;
  Tensors process(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* target) override {
    ++calls;
    return execute(op, in, attrs, target);
  }
  void process_multi(const Op&, const std::vector<Tensors>& inputs,
                     const std::vector<Tensors>&) override {
    multi += int(inputs.size());
  }
  void grad_written(Tensor&) override {}
};

struct Installed {  // scope
  explicit Installed(Recorder* r) { recorder = r; }
  ~Installed() { recorder = nullptr; }
};

}  // namespace

TEST(table_is_consistent) {
  CHECK(op_count() > 0 && registry_hash()[0] != 0);
  for (int i = 0; i < op_count(); ++i) {
    const Op& o = op(uint16_t(i));
    CHECK(o.id == i && find_op(o.name) == &o && o.kernel);
  }
  CHECK(find_op("no such op") == nullptr);
}

TEST(in_place_writes_and_counts_versions) {
  const TensorRef x = floats({6}), y = floats({6}, [](int64_t i) { return float(i); });
  const double before = at(x, 4);
  const uint32_t version = x->storage->version;
  CHECK(into("add", {x, y}, x) == x);
  CHECK(at(x, 4) == before + 4 && x->storage->version == version + 1);
  // Into a strided target of another dtype.
  const TensorRef d = Tensor::empty({3, 4}, DType::f64);
  into("add", {floats({4, 3}), floats({3})}, transposed(d));
  CHECK(at(transposed(d), 5) == at(floats({4, 3}), 5) + at(floats({3}), 2));
}

TEST(in_place_with_overlapping_inputs) {
  const TensorRef x = floats({100}, [](int64_t i) { return float(i); });
  const TensorRef head = Tensor::view(*x, {99}, {1}, 0), tail = Tensor::view(*x, {99}, {1}, 1);
  into("add", {tail, head}, tail);
  for (int64_t i = 1; i < 100; ++i) CHECK(at(x, i) == double(2 * i - 1));
  const TensorRef m = floats({5, 5}, [](int64_t i) { return float(i); });
  into("add", {m, transposed(m)}, m);
  for (int64_t i = 0; i < 25; ++i) CHECK(at(m, i) == double(i + (i % 5) * 5 + i / 5));
  const TensorRef first = Tensor::view(*m, {}, {}, 7);
  const double by = at(first, 0), before = at(m, 20);
  into("sub", {m, first}, m);
  CHECK(at(m, 20) == before - by && at(m, 7) == 0);
}

TEST(in_place_errors) {
  const TensorRef x = floats({3}), i = longs({3}, [](int64_t k) { return k; });
  CHECK_FAILS(shape, into("add", {x, floats({2, 3})}, x));
  CHECK_FAILS(dtype, into("add", {i, Tensor::scalar(1.5)}, i));
  CHECK_FAILS(value, into("add", {x, x}, Tensor::view(*x, {4, 3}, {0, 1}, 0)));
  CHECK_FAILS(value, into("sgd_update", {x, x, x, x, x, x, x, x, x}, x));
  x->storage->readonly = true;
  CHECK_FAILS(value, into("add", {x, x}, x));
  x->storage->readonly = false;
  x->meta().requires_grad = true;
  CHECK_FAILS(autograd, into("add", {x, x}, x));
  {
    NoGrad no_grad;
    into("add", {x, Tensor::scalar(1.0)}, x);
  }
  const TensorRef y = floats({4}), view = Tensor::view(*y, {3}, {1}, 0);
  CHECK_FAILS(autograd, into("add", {view, x}, view));
}

TEST(dispatch_records_when_a_gradient_is_wanted) {
  const TensorRef x = floats({3}), y = floats({3});
  CHECK(!call("add", {x, y})->requires_grad());
  x->meta().requires_grad = true;
  CHECK(call("add", {x, y})->requires_grad());
  CHECK(binary(named("mul"), y, x)->requires_grad());
  CHECK(unary(named("exp"), x)->requires_grad());
  CHECK(!binary(named("lt"), x, y)->requires_grad());
  NoGrad no_grad;
  CHECK(!call("add", {x, y})->requires_grad());
}

TEST(dispatch_in_place_takes_over_history) {
  const TensorRef x = floats({3}), y = floats({3});
  x->meta().requires_grad = true;
  into("mul", {y, x}, y);
  CHECK(y->requires_grad() && y->autograd->node);
  into("neg", {floats({3})}, y);  // nothing of the old value is left
  CHECK(!y->requires_grad());
}

TEST(recorder_sees_every_call) {
  Counter counter;
  const Installed installed(&counter);
  const TensorRef x = floats({3});
  call("add", {x, x});
  binary(named("add"), x, x);
  unary(named("neg"), x);
  into("add", {x, x}, x);
  multi_update(named("sgd_update"), {{}, {}}, {{}, {}});
  CHECK(counter.calls == 4 && counter.multi == 2);
}

TEST(multi_update_runs_many_tensors) {
  // sgd_update(p, g, buf, lr, momentum, dampening, weight_decay, nesterov, first) -> p, buf
  const auto number = [](float v) { return floats({}, [v](int64_t) { return v; }); };
  const Tensors hyper = {number(0.5f), number(0.9f), number(0), number(0), number(0), number(0)};
  std::vector<Tensors> inputs, targets;
  std::vector<TensorRef> before;
  for (int64_t n : {1, 5, 0, 70000, 33}) {
    const TensorRef p = floats({n}), g = floats({n}, [](int64_t i) { return float(i % 5); });
    const TensorRef buf = floats({n}, [](int64_t) { return 1.0f; });
    before.push_back(call("clone", {p}));
    Tensors in = {p, g, buf};
    for (const TensorRef& h : hyper) in.push_back(h);
    inputs.push_back(in);
    targets.push_back({p, buf});
  }
  multi_update(named("sgd_update"), inputs, targets);
  for (size_t k = 0; k < inputs.size(); ++k) {
    for (int64_t i = 0; i < before[k]->numel; ++i) {
      const double velocity = 0.9 + double(i % 5);
      CHECK(close(at(targets[k][1], i), velocity));
      CHECK(close(at(targets[k][0], i), at(before[k], i) - 0.5 * velocity));
    }
    CHECK(targets[k][0]->storage->version == 1 && targets[k][1]->storage->version == 1);
  }
  CHECK_FAILS(value, (multi_update(named("sgd_update"), inputs, {}), 0));
  CHECK_FAILS(value, (multi_update(named("sgd_update"), {{before[0]}}, {{before[0]}}), 0));
  inputs[0][0]->meta().requires_grad = true;
  CHECK_FAILS(autograd, (multi_update(named("sgd_update"), inputs, targets), 0));
}

TEST(storage_wraps_foreign_memory) {
  static int released = 0;
  float data[4] = {1, 2, 3, 4};
  {
    const TensorRef t = Tensor::over(
        Storage::wrap(
            data, sizeof data, [](void* owner) { ++*static_cast<int*>(owner); }, &released),
        {2, 2}, DType::f32);
    const TensorRef view = transposed(t);
    CHECK(at(view, 1) == 3 && !view->contiguous && view->is_view);
  }
  CHECK(released == 1);
}
