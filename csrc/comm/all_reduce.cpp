// all_reduce and reduce: the choice of an algorithm, and the short algorithms.
#include <algorithm>
#include <cstring>

#include "core.h"
#include "reduce_kernels.h"

namespace eager::comm {
namespace {

// Everyone has everyone's vector in the mailboxes of the opening round: reduce in rank order.
void reduce_payloads(Core& core, std::byte* data, size_t count, const Reduction& how) {
  if (count == 0) return;  // in groups of any size
  const void* in[Opening::kWell];
  for (int p = 0; p < core.n; ++p) {
    in[p] = p == core.me ? data : static_cast<const void*>(core.opening.payload(p));
  }
  void* out = data;
  reduce(how.dtype, how.op, in, core.n, &out, 1, count, how.divisor);
}

// The same through the streams, chunk by chunk.
void one_shot(Core& core, std::byte* data, size_t count, const Reduction& how,
              const Waiting& waiting) {
  Channels& channels = core.channels;
  const size_t item = item_size(how.dtype), chunk = channels.layout().chunk / item;
  std::vector<const void*> in(size_t(core.n));
  for (size_t begin = 0; begin < count; begin += chunk) {
    const size_t size = std::min(chunk, count - begin);
    void* own = data + begin * item;
    for (int i = 1; i < core.n; ++i) {
      channels.send((core.me + i) % core.n, own, size * item, waiting);
    }
    for (int p = 0; p < core.n; ++p) {
      in[size_t(p)] = p == core.me ? own : static_cast<const void*>(channels.receive(p, waiting));
    }
    channels.settle(waiting);
    reduce(how.dtype, how.op, in.data(), core.n, &own, 1, size, how.divisor);
    for (int p = 0; p < core.n; ++p) {
      if (p != core.me) channels.release(p);
    }
  }
}

// All memory is mapped: each rank reduces its share from everyone's memory, in rank order, and
// stores it into everyone's (or the root's).  Nobody else touches that share.
void direct(Core& core, size_t count, const Reduction& how, int root, const Waiting& waiting) {
  const size_t item = item_size(how.dtype);
  const Share share = share_of(count, core.n, core.me);
  std::vector<const void*> in;
  std::vector<void*> out;
  for (int p = 0; p < core.n; ++p) {
    std::byte* data = core.opening.in(p).data(count * item) + share.begin * item;
    in.push_back(data);
    if (root < 0 || p == root) out.push_back(data);
  }
  reduce(how.dtype, how.op, in.data(), core.n, out.data(), int(out.size()), share.size(),
         how.divisor);
  core.count_direct(share.size() * item * (in.size() + out.size() - 2));
  finish_direct(core, waiting);
}

}  // namespace

void all_reduce(Core& core, void* data, size_t count, DType dtype, ReduceOp op, bool patient) {
  check_reduction("all_reduce", dtype, op);
  const Waiting waiting = core.waiting("all_reduce", patient);
  const size_t bytes = count * item_size(dtype);
  const Reduction how{dtype, op, core.n};
  auto* memory = static_cast<std::byte*>(data);
  Algorithm algorithm = core.choose(bytes);
  Call call(Op::all_reduce, count, -1, dtype, op);

  if (algorithm == Algorithm::one_shot && bytes <= core.channels.layout().inline_bytes) {
    core.opening.open(call, data, bytes, waiting);
    return reduce_payloads(core, memory, count, how);
  }
  // Where the data lies decides as well; all ranks know it of all.
  const Place place = core.place(data, bytes);
  (core.mapped() ? call.in : call.out) = place;
  core.opening.open(call, nullptr, 0, waiting);
  const bool by_loads = core.mapped() && core.opening.all_in_mapped();
  if (core.mapped() && !by_loads) algorithm = core.choose(Reachability::copied, bytes);
  switch (algorithm) {
    case Algorithm::one_shot:
      one_shot(core, memory, count, how, waiting);
      break;
    case Algorithm::direct:
      if (by_loads) {
        direct(core, count, how, -1, waiting);
      } else {
        exchange_reduce(core, everyone(core), memory, memory, count, how, Result::everyone, -1,
                        waiting);
      }
      break;
    case Algorithm::ring:
      ring_all_reduce(core, everyone(core), memory, count, how, waiting);
      break;
    case Algorithm::halving_doubling:
      halving_doubling_all_reduce(core, everyone(core), memory, count, how, waiting);
      break;
    case Algorithm::hierarchical:
      hierarchical_all_reduce(core, memory, count, how, waiting);
      break;
  }
  core.channels.settle(waiting);
}

void reduce(Core& core, void* data, size_t count, DType dtype, ReduceOp op, int root,
            bool patient) {
  check_reduction("reduce", dtype, op);
  const Waiting waiting = core.waiting("reduce", patient);
  const size_t bytes = count * item_size(dtype);
  const Reduction how{dtype, op, core.n};
  auto* memory = static_cast<std::byte*>(data);
  Call call(Op::reduce, count, root, dtype, op);
  if (bytes <= core.channels.layout().inline_bytes) {
    core.opening.open(call, data, bytes, waiting);
    if (core.me == root) reduce_payloads(core, memory, count, how);
    return;
  }
  (core.mapped() ? call.in : call.out) = core.place(data, bytes);
  core.opening.open(call, nullptr, 0, waiting);
  if (core.mapped() && core.opening.all_in_mapped()) {
    direct(core, count, how, root, waiting);
  } else {
    exchange_reduce(core, everyone(core), memory, memory, count, how, Result::root, root, waiting);
  }
  core.channels.settle(waiting);
}

}  // namespace eager::comm
