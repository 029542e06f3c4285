// all_reduce over a ring, by recursive halving and doubling, and in two levels.
#include <algorithm>
#include <cstring>

#include "core.h"
#include "reduce_kernels.h"

namespace eager::comm {
namespace {

void divide_alone(std::byte* data, size_t count, const Reduction& how) {
  const void* in = data;
  void* out = data;
  if (how.op == ReduceOp::avg && how.divisor > 1) {
    reduce(how.dtype, how.op, &in, 1, &out, 1, count, how.divisor);
  }
}

// Two transfers with one partner or two, chunk after chunk, the sending one chunk ahead; what
// comes is added to, or replaces, `into`.
struct Trade {
  Core& core;
  const Reduction& how;
  const Waiting& waiting;

  void operator()(int to, const std::byte* data, size_t send_bytes, int from, std::byte* into,
                  size_t receive_bytes, bool adds) const {
    Channels& channels = core.channels;
    const size_t chunk = channels.layout().chunk;
    size_t sent = 0;
    const auto send = [&] {
      if (sent >= send_bytes) return;
      const size_t size = std::min(chunk, send_bytes - sent);
      channels.send(to, data + sent, size, waiting);
      sent += size;
    };
    send();
    for (size_t at = 0; at < receive_bytes; at += chunk) {
      send();
      const size_t size = std::min(chunk, receive_bytes - at);
      const std::byte* chunk_here = channels.receive(from, waiting);
      if (adds) {
        accumulate(how.dtype, how.op, into + at, chunk_here, size / item_size(how.dtype));
      } else {
        std::memcpy(into + at, chunk_here, size);
        core.count_staged(size);
      }
      channels.release(from);
    }
    while (sent < send_bytes) send();
  }
};

}  // namespace

// Patarasuk and Yuan 2009: n - 1 steps in which partial sums go round, n - 1 in which results do.
// All steps are one sequence of chunks; chunk t depends on the one received `per_part` chunks
// before, so up to two chunks are sent ahead of what is being received.  Everybody can send chunk
// t + 2 once its neighbour is done with chunk t - 2: whoever is furthest behind can go on.
void ring_all_reduce(Core& core, const Team& team, std::byte* data, size_t count,
                     const Reduction& how, const Waiting& waiting, size_t shift) {
  const int n = team.size();
  if (n == 1) return divide_alone(data, count, how);
  Channels& channels = core.channels;
  const size_t item = item_size(how.dtype), chunk = channels.layout().chunk / item;
  const int right = team.member[size_t((team.me + 1) % n)];
  const int left = team.member[size_t((team.me + n - 1) % n)];
  const size_t per_part = (share_of(count, n, 0).size() + chunk - 1) / chunk;
  const size_t total = size_t(2 * (n - 1)) * per_part;
  const bool complete = core.opening.complete();
  const Reach* landing =
      complete && core.opening.out(right).known ? &core.opening.out(right) : nullptr;
  const bool landed = complete && core.opening.out(core.me).known;

  // What chunk t is, in elements: in step s a rank sends part me - s, and receives the next lower.
  const auto chunk_of = [&](size_t t, int lower) {
    const int step = int(t / per_part);
    const Share part = share_of(count, n, ((team.me - step - lower) % n + 2 * n) % n);
    const size_t begin = std::min(part.begin + t % per_part * chunk, part.end);
    return Share{begin, std::min(begin + chunk, part.end)};
  };
  const size_t reducing = size_t(n - 1) * per_part;
  size_t sent = 0;
  const auto send = [&] {
    const Share c = chunk_of(sent, 0);
    const bool result = sent++ >= reducing;
    if (c.size() == 0) return;
    const std::byte* source = data + c.begin * item;
    if (result && landing) {
      channels.note(right, channels.put(landing->target, landing->offset + shift + c.begin * item,
                                        source, c.size() * item, kLanded));
    } else {
      channels.send(right, source, c.size() * item, waiting);
    }
  };
  const size_t ahead = std::min<size_t>(per_part ? per_part - 1 : 0, 2);
  for (size_t t = 0; t < total; ++t) {
    while (sent < std::min(total, t + 1 + ahead)) send();
    const Share c = chunk_of(t, 1);
    if (c.size() == 0) continue;
    std::byte* own = data + c.begin * item;
    if (t < reducing) {
      const void* in[2] = {own, channels.receive(left, waiting)};
      void* out = own;
      const bool last = t >= reducing - per_part;
      reduce(how.dtype, how.op, in, 2, &out, 1, c.size(), last ? how.divisor : 0);
      channels.release(left);
    } else if (landed) {
      channels.await(left, kLanded, waiting);
    } else {
      // The old contents were sent in the first half: this result was made from them.
      std::memcpy(own, channels.receive(left, waiting), c.size() * item);
      channels.release(left);
      core.count_staged(c.size() * item);
    }
  }
}

// Rabenseifner's algorithm (Thakur, Rabenseifner, Gropp 2005, section 4.5): vectors are halved
// while distances double, then the other way round.  If the number of ranks is not a power of two,
// the first ranks join in pairs before, and the left-out ones get the result after.
void halving_doubling_all_reduce(Core& core, const Team& team, std::byte* data, size_t count,
                                 const Reduction& how, const Waiting& waiting) {
  const int n = team.size();
  if (n == 1) return divide_alone(data, count, how);
  const size_t item = item_size(how.dtype), all = count * item;
  const Trade trade{core, how, waiting};
  int power = 1;
  while (power * 2 <= n) power *= 2;
  const int pairs = n - power;
  const bool paired = team.me < 2 * pairs;
  if (paired && team.me % 2 == 0) {
    const int partner = team.member[size_t(team.me + 1)];
    trade(partner, data, all, partner, data, 0, true);
    trade(partner, data, 0, partner, data, all, false);
    return;
  }
  if (paired) {
    const int partner = team.member[size_t(team.me - 1)];
    trade(partner, data, 0, partner, data, all, true);
  }
  const int place = paired ? team.me / 2 : team.me - pairs;
  const auto member = [&](int at) {
    return team.member[size_t(at < pairs ? 2 * at + 1 : at + pairs)];
  };

  std::vector<Share> ranges{{0, count}};
  for (int distance = 1; distance < power; distance *= 2) {
    const Share range = ranges.back();
    const size_t middle = range.begin + share_of(range.size(), 2, 0).end;
    const Share low{range.begin, middle}, high{middle, range.end};
    const bool keeps_low = (place & distance) == 0;
    const Share kept = keeps_low ? low : high, given = keeps_low ? high : low;
    const int partner = member(place ^ distance);
    trade(partner, data + given.begin * item, given.size() * item, partner,
          data + kept.begin * item, kept.size() * item, true);
    ranges.push_back(kept);
  }
  divide_alone(data + ranges.back().begin * item, ranges.back().size(), how);
  for (int distance = power / 2; distance >= 1; distance /= 2) {
    const Share own = ranges.back();
    ranges.pop_back();
    const Share range = ranges.back();
    const bool low = (place & distance) == 0;
    const Share other = low ? Share{own.end, range.end} : Share{range.begin, own.begin};
    const int partner = member(place ^ distance);
    // What is overwritten here was given away above, and the partner's result was made from it.
    trade(partner, data + own.begin * item, own.size() * item, partner, data + other.begin * item,
          other.size() * item, false);
  }
  if (paired) {
    const int partner = team.member[size_t(team.me - 1)];
    trade(partner, data, all, partner, data, 0, false);
  }
}

// Inside each host the members reduce one share each; members of equal place on all hosts then
// reduce that share, and pass the result on inside the host.  Hosts with different numbers of
// members have no equal places: one ring goes through all.
void hierarchical_all_reduce(Core& core, std::byte* data, size_t count, const Reduction& how,
                             const Waiting& waiting) {
  Team local, across;
  for (size_t h = 0; h < core.hosts.size(); ++h) {
    const std::vector<int>& host = core.hosts[h];
    if (host.size() != core.hosts[0].size()) {
      return ring_all_reduce(core, everyone(core), data, count, how, waiting);
    }
    const auto found = std::find(host.begin(), host.end(), core.me);
    if (found == host.end()) continue;
    local.member = host;
    local.me = int(found - host.begin());
    across.me = int(h);
  }
  for (const std::vector<int>& host : core.hosts) {
    across.member.push_back(host[size_t(local.me)]);
  }
  const size_t item = item_size(how.dtype);
  const int size = local.size();
  const Share own = share_of(count, size, local.me);
  Reduction sum = how;
  sum.divisor = 0;
  exchange_reduce(core, local, data, data, count, sum, Result::kept, -1, waiting);

  constexpr size_t kRingFrom = 512 << 10;
  std::byte* share = data + own.begin * item;
  // The members of `across` have shares of equal size, so they choose alike.
  if (own.size() * item < kRingFrom) {
    halving_doubling_all_reduce(core, across, share, own.size(), how, waiting);
  } else {
    ring_all_reduce(core, across, share, own.size(), how, waiting, own.begin * item);
  }

  std::vector<Sending> sendings;
  std::vector<Receiving> receivings;
  const bool complete = core.opening.complete();
  for (int i = 1; i < size; ++i) {
    const int k = (local.me + i) % size, to = local.member[size_t(k)];
    const Reach* landing = complete && core.opening.out(to).known ? &core.opening.out(to) : nullptr;
    sendings.push_back({to, share, own.size() * item, landing, own.begin * item});
  }
  for (int i = 1; i < size; ++i) {
    const int k = (local.me + size - i) % size, from = local.member[size_t(k)];
    const Share s = share_of(count, size, k);
    receivings.push_back({from, data + s.begin * item, s.size() * item,
                          complete && core.opening.out(core.me).known});
  }
  transfer(core, sendings, receivings, waiting);
}

}  // namespace eager::comm
