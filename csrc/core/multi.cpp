#include <algorithm>
#include <string>

#include "elementwise.h"
#include "kernels.h"
#include "pool.h"
#include "tape.h"

namespace eager::core {
namespace {

constexpr int64_t kGrain = 32768;

void check_targets(const Op& op, const Tensors& in, const Tensors& targets) {
  if (op.kind != Kind::elementwise || !op.loops || op.n_attrs) {
    fail(ErrorKind::value, op.name, "only elementwise ops without attributes run on many tensors",
         "such an op", op.name);
  }
  if (in.size() != size_t(op.inputs) || targets.size() != size_t(op.outputs)) {
    fail(ErrorKind::value, op.name, "wrong number of tensors",
         std::to_string(op.inputs) + " inputs and " + std::to_string(op.outputs) + " targets",
         std::to_string(in.size()) + " and " + std::to_string(targets.size()));
  }
  for (const TensorRef& t : targets) check_writable(op.name, *t);
}

bool any_overlap(const Tensors& in, const Tensors& targets) {
  for (const TensorRef& t : targets)
    for (const TensorRef& x : in)
      if (overlaps(*x, *t)) return true;
  return false;
}

}  // namespace

void multi_update(const Op& op, const std::vector<Tensors>& inputs,
                  const std::vector<Tensors>& targets) {
  if (inputs.size() != targets.size()) {
    fail(ErrorKind::value, op.name, "one set of targets is needed for every set of inputs",
         std::to_string(inputs.size()), std::to_string(targets.size()));
  }
  if (recorder) return recorder->process_multi(op, inputs, targets);
  for (size_t i = 0; i < inputs.size(); ++i) check_targets(op, inputs[i], targets[i]);
  std::vector<Sweep> sweeps;
  std::vector<int64_t> ends;  // of each sweep's elements, all counted in one line
  sweeps.reserve(inputs.size());
  int64_t total = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Inferred r = infer_elementwise(op, inputs[i], {});
    for (const TensorRef& t : targets[i]) check_target(op, r.shape, r.dtype, *t);
    for (const TensorRef& t : targets[i]) {
      if (t->device == r.device) continue;
      fail(ErrorKind::device, op.name, "the targets are on another device", name(r.device),
           name(t->device));
    }
    if (r.device == Device::meta || !targets[i][0]->numel) continue;
    if (any_overlap(inputs[i], targets[i])) {
      elementwise_into(op, inputs[i], {}, targets[i]);
      continue;
    }
    sweeps.push_back(elementwise_sweep(op, inputs[i], nullptr, r, targets[i]));
    ends.push_back(total += sweeps.back().numel());
  }
  {
    LongWork work(total >= kGrain * 8);
    parallel_for(total, kGrain, [&](int64_t begin, int64_t end) {
      size_t k = size_t(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
      for (; begin < end; ++k) {
        const int64_t start = ends[k] - sweeps[k].numel(), stop = std::min(end, ends[k]);
        sweeps[k].run(begin - start, stop - start);
        begin = stop;
      }
    });
  }
  for (const Tensors& outs : targets)
    for (const TensorRef& t : outs) ++t->storage->version;
}

}  // namespace eager::core
