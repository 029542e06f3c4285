// broadcast, gather and scatter.
#include <algorithm>
#include <cstring>

#include "core.h"

namespace eager::comm {
namespace {

// Chunks go down a tree: a rank passes each one on from its own memory as soon as it has it.
// Small data takes a binomial tree (depth log2 n), large data a chain (every link used once).
void down_the_tree(Core& core, std::byte* data, size_t bytes, int root, const Waiting& waiting) {
  constexpr size_t kChainFrom = 1 << 20;
  Channels& channels = core.channels;
  const int n = core.n, place = (core.me - root + n) % n;
  std::vector<int> children;
  int parent = -1;
  if (bytes >= kChainFrom && n > 2) {
    if (place > 0) parent = place - 1;
    if (place + 1 < n) children.push_back(place + 1);
  } else {
    int bit = 1;
    while (bit < n && !(place & bit)) bit *= 2;
    if (place) parent = place - bit;
    for (bit /= 2; bit >= 1; bit /= 2) {
      if (place + bit < n) children.push_back(place + bit);
    }
  }
  const auto member = [&](int at) { return (at + root) % n; };
  const auto reach = [&](int m) {
    const bool known = core.opening.complete() && core.opening.out(m).known;
    return known ? &core.opening.out(m) : nullptr;
  };
  const size_t chunk = channels.layout().chunk;
  for (size_t at = 0; at < bytes; at += chunk) {
    const size_t size = std::min(chunk, bytes - at);
    if (parent >= 0 && reach(core.me)) {
      channels.await(member(parent), kLanded, waiting);
    } else if (parent >= 0) {
      std::memcpy(data + at, channels.receive(member(parent), waiting), size);
      channels.release(member(parent));
      core.count_staged(size);
    }
    for (const int child : children) {
      const int to = member(child);
      if (const Reach* there = reach(to)) {
        channels.note(to,
                      channels.put(there->target, there->offset + at, data + at, size, kLanded));
      } else {
        channels.send(to, data + at, size, waiting);
      }
    }
  }
}

}  // namespace

void broadcast(Core& core, void* data, size_t bytes, int root, bool patient) {
  const Waiting waiting = core.waiting("broadcast", patient);
  Opening& opening = core.opening;
  auto* memory = static_cast<std::byte*>(data);
  Call call(Op::broadcast, bytes, root);
  const bool is_root = core.me == root;
  if (bytes <= core.channels.layout().inline_bytes) {
    opening.open(call, data, is_root ? bytes : 0, waiting);
    if (is_root || !bytes) return;
    std::memcpy(memory, opening.payload(root), bytes);
    core.count_staged(bytes);
    return;
  }
  const Place place = core.place(data, bytes);
  if (is_root && core.mapped()) call.in = place;
  if (!is_root) call.out = place;
  opening.open(call, nullptr, 0, waiting);
  if (core.mapped() && opening.complete() && opening.in(root).known && opening.in(root).mapped) {
    // All read the root's memory, at the same time.
    if (is_root) {
      for (int p = 0; p < core.n; ++p) {
        if (p != root) core.channels.await(p, kDone, waiting);
      }
    } else {
      std::memcpy(memory, opening.in(root).data(bytes), bytes);
      core.count_direct(bytes);
      core.channels.signal(root, kDone);
    }
  } else {
    down_the_tree(core, memory, bytes, root, waiting);
  }
  core.channels.settle(waiting);
}

void gather(Core& core, const void* in, void* out, size_t bytes, int root, bool patient) {
  const Waiting waiting = core.waiting("gather", patient);
  const auto* source = static_cast<const std::byte*>(in);
  auto* result = static_cast<std::byte*>(out);
  Call call(Op::gather, bytes, root);
  if (core.me == root) call.out = core.place(out, size_t(core.n) * bytes);
  core.opening.open(call, nullptr, 0, waiting);
  const bool lands = core.opening.complete() && core.n > 1 && core.opening.out(root).known;
  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  if (core.me != root) {
    sendings.push_back(
        {root, source, bytes, lands ? &core.opening.out(root) : nullptr, size_t(core.me) * bytes});
  } else {
    for (int p = 0; p < core.n; ++p) {
      if (p != root) receivings.push_back({p, result + size_t(p) * bytes, bytes, lands});
    }
    std::byte* own = result + size_t(root) * bytes;
    if (bytes && own != source) std::memmove(own, source, bytes);
  }
  transfer(core, sendings, receivings, waiting);
  core.channels.settle(waiting);
}

void scatter(Core& core, const void* in, void* out, size_t bytes, int root, bool patient) {
  const Waiting waiting = core.waiting("scatter", patient);
  const auto* source = static_cast<const std::byte*>(in);
  auto* result = static_cast<std::byte*>(out);
  Call call(Op::scatter, bytes, root);
  if (core.me != root) call.out = core.place(out, bytes);
  core.opening.open(call, nullptr, 0, waiting);
  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  if (core.me == root) {
    for (int p = 0; p < core.n; ++p) {
      if (p == root) continue;
      const bool lands = core.opening.complete() && core.opening.out(p).known;
      sendings.push_back(
          {p, source + size_t(p) * bytes, bytes, lands ? &core.opening.out(p) : nullptr});
    }
    const std::byte* own = source + size_t(root) * bytes;
    if (bytes && own != result) std::memmove(result, own, bytes);
  } else {
    const bool landed = core.opening.complete() && core.opening.out(core.me).known;
    receivings.push_back({root, result, bytes, landed});
  }
  transfer(core, sendings, receivings, waiting);
  core.channels.settle(waiting);
}

}  // namespace eager::comm
