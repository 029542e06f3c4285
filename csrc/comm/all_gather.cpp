// all_gather, reduce_scatter, all_to_all and barrier.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core.h"
#include "reduce_kernels.h"

namespace eager::comm {

void all_gather(Core& core, const void* in, void* out, size_t bytes, bool patient) {
  const Waiting waiting = core.waiting("all_gather", patient);
  const auto* source = static_cast<const std::byte*>(in);
  auto* result = static_cast<std::byte*>(out);
  std::byte* own = result + size_t(core.me) * bytes;
  Opening& opening = core.opening;
  Call call(Op::all_gather, bytes, -1);
  if (bytes <= core.channels.layout().inline_bytes) {
    opening.open(call, in, bytes, waiting);
    if (bytes == 0) return;
    for (int p = 0; p < core.n; ++p) {
      if (p != core.me) std::memcpy(result + size_t(p) * bytes, opening.payload(p), bytes);
    }
    if (own != source) std::memmove(own, source, bytes);
    core.count_staged(size_t(core.n - 1) * bytes);
    return;
  }
  if (core.mapped()) call.in = core.place(in, bytes);
  call.out = core.place(out, size_t(core.n) * bytes);
  opening.open(call, nullptr, 0, waiting);
  // Ranks whose result is in a region are written straight; the others read the sources, if all of
  // them can be read, or take the streams.
  const bool readable = core.mapped() && opening.all_in_mapped();
  const bool landed = opening.complete() && opening.out(core.me).known;
  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  for (int i = 1; i < core.n; ++i) {
    const int to = (core.me + i) % core.n, from = (core.me + core.n - i) % core.n;
    const bool lands = opening.complete() && opening.out(to).known;
    if (lands || !readable) {
      sendings.push_back(
          {to, source, bytes, lands ? &opening.out(to) : nullptr, size_t(core.me) * bytes});
    }
    if (landed || !readable) {
      receivings.push_back({from, result + size_t(from) * bytes, bytes, landed});
    }
  }
  if (own != source) std::memmove(own, source, bytes);
  transfer(core, sendings, receivings, waiting);
  if (readable) {
    for (int i = 1; !landed && i < core.n; ++i) {
      const int from = (core.me + core.n - i) % core.n;
      std::memcpy(result + size_t(from) * bytes, opening.in(from).data(bytes), bytes);
      core.count_direct(bytes);
    }
    finish_direct(core, waiting);
  }
  core.channels.settle(waiting);
}

void reduce_scatter(Core& core, const void* in, void* out, size_t count, DType dtype, ReduceOp op,
                    bool patient) {
  check_reduction("reduce_scatter", dtype, op);
  const Waiting waiting = core.waiting("reduce_scatter", patient);
  const size_t bytes = count * item_size(dtype), all = bytes * size_t(core.n);
  const auto* source = static_cast<const std::byte*>(in);
  const Reduction how{dtype, op, core.n};
  Call call(Op::reduce_scatter, count, -1, dtype, op);
  const size_t mine = size_t(core.me) * bytes;
  if (all <= core.channels.layout().inline_bytes) {
    core.opening.open(call, in, all, waiting);
    if (count == 0) return;
    const void* operands[Opening::kWell];
    for (int p = 0; p < core.n; ++p) {
      operands[p] = (p == core.me ? source : core.opening.payload(p)) + mine;
    }
    return reduce(dtype, op, operands, core.n, &out, 1, count, core.n);
  }
  if (core.mapped()) call.in = core.place(in, all);
  core.opening.open(call, nullptr, 0, waiting);
  if (core.mapped() && core.opening.all_in_mapped()) {
    std::vector<const void*> operands;
    for (int p = 0; p < core.n; ++p) operands.push_back(core.opening.in(p).data(all) + mine);
    reduce(dtype, op, operands.data(), core.n, &out, 1, count, core.n);
    core.count_direct(bytes * size_t(core.n - 1));
    finish_direct(core, waiting);
  } else {
    exchange_reduce(core, everyone(core), source, static_cast<std::byte*>(out), count, how,
                    Result::owner, -1, waiting);
  }
  core.channels.settle(waiting);
}

// What differs between pairs is found before data moves: in small groups every rank sees the sizes
// of all, in large ones the two ranks of a pair compare, and all tell whether they found it right.
static void agree_on_sizes(Core& core, const Call& call, const std::vector<size_t>& send_bytes,
                           const std::vector<size_t>& recv_bytes, const Waiting& waiting) {
  const size_t n = size_t(core.n);
  std::vector<uint64_t> sizes(2 * n);
  std::copy(send_bytes.begin(), send_bytes.end(), sizes.begin());
  std::copy(recv_bytes.begin(), recv_bytes.end(), sizes.begin() + long(n));
  const auto complain = [&](size_t from, size_t to, uint64_t sent, const std::string& wanted) {
    fail(ErrorKind::mismatch, "all_to_all", "the ranks' sizes do not match",
         "as many bytes received from a rank as it sends",
         "rank " + std::to_string(core.channels.rank(int(from))) + " sends " +
             std::to_string(sent) + " bytes to rank " +
             std::to_string(core.channels.rank(int(to))) + ", which expects " + wanted);
  };
  if (core.opening.complete()) {
    core.opening.open(call, sizes.data(), 2 * n * sizeof(uint64_t), waiting);
    std::vector<std::vector<uint64_t>> of(n, sizes);
    for (size_t p = 0; p < n; ++p) {
      if (int(p) == core.me) continue;
      if (core.opening.payload_bytes(int(p)) != 2 * n * sizeof(uint64_t)) {
        fail(ErrorKind::protocol, "all_to_all", "a rank sent no sizes");
      }
      std::memcpy(of[p].data(), core.opening.payload(int(p)), 2 * n * sizeof(uint64_t));
    }
    for (size_t from = 0; from < n; ++from) {
      for (size_t to = 0; to < n; ++to) {
        const uint64_t sent = of[from][to], wanted = of[to][n + from];
        if (sent != wanted) complain(from, to, sent, std::to_string(wanted));
      }
    }
    return;
  }
  core.opening.open(call, nullptr, 0, waiting);
  std::vector<uint64_t> theirs(n);
  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  for (size_t p = 0; p < n; ++p) {
    if (int(p) == core.me) continue;
    sendings.push_back({int(p), reinterpret_cast<const std::byte*>(&sizes[p]), sizeof(uint64_t)});
    receivings.push_back({int(p), reinterpret_cast<std::byte*>(&theirs[p]), sizeof(uint64_t)});
  }
  transfer(core, sendings, receivings, waiting);
  core.channels.settle(waiting);
  theirs[size_t(core.me)] = send_bytes[size_t(core.me)];
  const auto wrong = std::mismatch(theirs.begin(), theirs.end(), sizes.begin() + long(n));
  const bool right = wrong.first == theirs.end();
  if (core.opening.unanimous(right, waiting)) return;
  if (!right) {
    complain(size_t(wrong.first - theirs.begin()), size_t(core.me), *wrong.first,
             std::to_string(*wrong.second));
  }
  fail(ErrorKind::mismatch, "all_to_all", "the sizes of two other ranks do not match",
       "as many bytes received from a rank as it sends");
}

void all_to_all(Core& core, const void* in, const std::vector<size_t>& send_bytes, void* out,
                const std::vector<size_t>& recv_bytes, bool patient) {
  const Waiting waiting = core.waiting("all_to_all", patient);
  const size_t n = size_t(core.n), me = size_t(core.me);
  if (send_bytes.size() != n || recv_bytes.size() != n) {
    fail(ErrorKind::invalid, "all_to_all", "one size for each rank is needed", std::to_string(n),
         std::to_string(send_bytes.size()) + " and " + std::to_string(recv_bytes.size()));
  }
  agree_on_sizes(core, Call(Op::all_to_all), send_bytes, recv_bytes, waiting);
  if (send_bytes[me] != recv_bytes[me]) {  // alone in the group: nobody compared
    fail(ErrorKind::mismatch, "all_to_all", "sizes to and from this rank itself differ",
         std::to_string(send_bytes[me]), std::to_string(recv_bytes[me]));
  }
  std::vector<size_t> from(n), to(n);
  std::partial_sum(send_bytes.begin(), send_bytes.end() - 1, from.begin() + 1);
  std::partial_sum(recv_bytes.begin(), recv_bytes.end() - 1, to.begin() + 1);
  const auto* source = static_cast<const std::byte*>(in);
  auto* result = static_cast<std::byte*>(out);
  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  for (size_t i = 1; i < n; ++i) {
    const size_t next = (me + i) % n, previous = (me + n - i) % n;
    sendings.push_back({int(next), source + from[next], send_bytes[next]});
    receivings.push_back({int(previous), result + to[previous], recv_bytes[previous]});
  }
  if (send_bytes[me]) std::memmove(result + to[me], source + from[me], send_bytes[me]);
  transfer(core, sendings, receivings, waiting);
  core.channels.settle(waiting);
}

void barrier(Core& core, bool patient) {
  core.opening.open(Call(Op::barrier), nullptr, 0, core.waiting("barrier", patient));
}

}  // namespace eager::comm
