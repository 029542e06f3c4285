#include "agree.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

constexpr uint32_t kMagic = 0x6e65706f;
enum Flag : uint8_t { kIn = 1, kOut = 2, kInKey = 4, kOutKey = 8 };

uint64_t mixed(uint64_t h, uint64_t value) {
  // The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
  h += value + 0x9e3779b97f4a7c15;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  return h ^ (h >> 31);
}

uint64_t hash_of(const Call& c) {
  uint64_t h = mixed(uint64_t(c.op) | uint64_t(c.dtype) << 8 | uint64_t(c.reduce) << 16, c.count);
  return mixed(h, uint64_t(uint32_t(c.root)) | uint64_t(c.extra) << 32);
}

bool uses_dtype(Op op) {
  return op == Op::all_reduce || op == Op::reduce || op == Op::reduce_scatter ||
         op == Op::plan_all_reduce || op == Op::plan_reduce_scatter;
}

bool equal(const Descriptor& a, const Descriptor& b) {
  return a.op == b.op && a.count == b.count && a.root == b.root && a.dtype == b.dtype &&
         a.reduce == b.reduce && a.extra == b.extra;
}

// "all_reduce(10 x float32, sum)"
std::string text(const Descriptor& d) {
  std::string t = name(Op(d.op));
  if (Op(d.op) == Op::barrier || Op(d.op) == Op::init) return t + "()";
  t += "(" + std::to_string(d.count);
  if (uses_dtype(Op(d.op))) {
    t += std::string(" x ") + name(DType(d.dtype)) + ", " + name(ReduceOp(d.reduce));
  } else if (Op(d.op) != Op::all_to_all) {
    t += " bytes";
  }
  if (d.root >= 0) t += ", root " + std::to_string(d.root);
  return t + ")";
}

// What all ranks must have been asked alike.
Descriptor descriptor_of(const Call& call) {
  Descriptor d{};
  d.count = call.count;
  d.op = uint8_t(call.op);
  d.dtype = uint8_t(call.dtype);
  d.reduce = uint8_t(call.reduce);
  d.root = call.root;
  d.extra = call.extra;
  return d;
}

}  // namespace

const char* name(Op op) {
  static const char* const kNames[] = {"init",           "all_reduce",      "reduce",
                                       "reduce_scatter", "all_gather",      "broadcast",
                                       "gather",         "scatter",         "all_to_all",
                                       "barrier",        "plan_all_reduce", "plan_reduce_scatter",
                                       "plan_all_gather"};
  return kNames[int(op)];
}

std::byte* Reach::data(size_t bytes) const {
  if (offset > target.length || bytes > target.length - offset) {
    fail(ErrorKind::protocol, "Group",
         "rank " + std::to_string(target.peer) + " described memory outside its region",
         "at most " + std::to_string(target.length) + " bytes",
         std::to_string(bytes) + " at offset " + std::to_string(offset));
  }
  return target.mapped + offset;
}

Opening::Opening(Channels& channels) : channels_(channels), last_(size_t(channels.size())) {}

void Opening::open(const Call& call, const void* payload, size_t bytes, const Waiting& waiting) {
  if (channels_.size() == 1) {
    ++sequence_;
  } else if (complete()) {
    exchange(call, payload, bytes, waiting);
  } else {
    disseminate(call, waiting);
  }
}

// Two mailboxes per pair are enough.  A member writes mailbox s % 2 in round s, having finished
// round s - 1, so it has this rank's descriptor of s - 1, which this rank sent after it had read
// everything of round s - 2, payloads included: they are used up before a collective returns.
void Opening::exchange(const Call& call, const void* payload, size_t bytes,
                       const Waiting& waiting) {
  const int n = channels_.size(), me = channels_.me();
  const Layout& layout = channels_.layout();
  const uint64_t sequence = sequence_++;
  const size_t box = layout.opening + (sequence % 2) * ((layout.detail - layout.opening) / 2);

  Outgoing& outgoing = outgoing_[sequence % 2];
  Descriptor& mine = outgoing.descriptor;
  mine = descriptor_of(call);
  mine.sequence = sequence;
  mine.magic = kMagic;
  mine.payload = uint32_t(bytes);
  const Place* const places[2] = {&call.in, &call.out};
  for (int k = 0; k < 2; ++k) {
    if (!places[k]->region) continue;
    const uint32_t id = places[k]->region->id;
    mine.flags |= k ? kOut : kIn;
    (k ? mine.out_region : mine.in_region) = id;
    (k ? mine.out_offset : mine.in_offset) = places[k]->offset;
    Known& known = known_[{me, id}];
    if (known.target.length) continue;
    known.target = {channels_.rank(me), id, places[k]->region->length, places[k]->region->base};
    mine.flags |= k ? kOutKey : kInKey;
  }
  last_[size_t(me)] = mine;
  for (int i = 1; i < n; ++i) {
    const int p = (me + i) % n;
    Key* keys = outgoing.keys[p];
    Piece pieces[4] = {{&mine, sizeof mine}};
    int count = 1;
    for (int k = 0; k < 2; ++k) {
      if (!(mine.flags & (k ? kOutKey : kInKey))) continue;
      keys[k] = channels_.fabric().key(*places[k]->region, channels_.rank(p));
      pieces[count++] = {&keys[k], sizeof(Key)};
    }
    if (bytes) pieces[count++] = {payload, bytes};
    channels_.note(p, channels_.put(p, box, pieces, count, kOpen));
  }
  bool news = mine.flags & (kInKey | kOutKey), same = true;
  for (int p = 0; p < n; ++p) {
    if (p == me) continue;
    channels_.await(p, kOpen, waiting);
    const std::byte* at = channels_.here_at(p, box);
    Descriptor& d = last_[size_t(p)];
    std::memcpy(&d, at, sizeof d);
    if (d.magic != kMagic || d.sequence != sequence || d.op > uint8_t(Op::plan_all_gather) ||
        d.dtype > uint8_t(DType::boolean) || d.reduce > uint8_t(ReduceOp::prod) ||
        d.payload > layout.inline_bytes) {
      fail(ErrorKind::protocol, name(call.op),
           "rank " + std::to_string(channels_.rank(p)) + " sent an opening that is not one",
           "sequence " + std::to_string(sequence), "sequence " + std::to_string(d.sequence));
    }
    payload_[p] = at + Layout::kHeader;
    payload_bytes_[p] = d.payload;
    news = news || (d.flags & (kInKey | kOutKey));
    same = same && equal(mine, d);
  }
  if (news) learn(waiting);
  channels_.settle(waiting);
  if (!same) compare(call);
  for (int p = 0; p < n; ++p) {
    const Descriptor& d = last_[size_t(p)];
    in_[p].known = out_[p].known = false;
    if (d.flags & kIn) in_[p] = reach(p, d.in_region, d.in_offset);
    if (d.flags & kOut) out_[p] = reach(p, d.out_region, d.out_offset);
  }
}

// Takes in the keys of this round, and agrees on which of the regions all members can map.
void Opening::learn(const Waiting& waiting) {
  const int n = channels_.size(), me = channels_.me();
  uint64_t bits = 0;
  for (int p = 0; p < n; ++p) {
    const Descriptor& d = last_[size_t(p)];
    const std::byte* keys = p == me ? nullptr : payload_[p];
    for (int k = 0; k < 2; ++k) {
      const uint64_t bit = uint64_t(1) << (2 * p + k);
      if (!(d.flags & (k ? kOutKey : kInKey))) continue;
      Known& known = known_[{p, k ? d.out_region : d.in_region}];
      if (p == me) {
        bits |= bit;
        continue;
      }
      Key key;
      std::memcpy(key.data(), keys, sizeof key);
      keys += sizeof key;
      known.target = channels_.fabric().import(channels_.rank(p), key);
      if (known.target.mapped) bits |= bit;
    }
  }
  if (!mapped_) return;
  bits = all_and(bits, waiting);
  for (int p = 0; p < n; ++p) {
    const Descriptor& d = last_[size_t(p)];
    for (int k = 0; k < 2; ++k) {
      if (!(d.flags & (k ? kOutKey : kInKey))) continue;
      known_[{p, k ? d.out_region : d.in_region}].mapped = bits >> (2 * p + k) & 1;
    }
  }
}

Reach Opening::reach(int member, uint32_t region, uint64_t offset) const {
  const auto found = known_.find({member, region});
  if (found == known_.end()) {
    fail(ErrorKind::protocol, "Group",
         "rank " + std::to_string(channels_.rank(member)) + " named a region it never told of");
  }
  return {found->second.target, size_t(offset), true, found->second.mapped};
}

bool Opening::all_in_mapped() const {
  for (int p = 0; p < channels_.size(); ++p) {
    if (!complete() || !in_[p].known || !in_[p].mapped) return false;
  }
  return true;
}

// Minimum and maximum are idempotent, so dissemination computes them for any number of ranks.
// Mailboxes: as above; a member that is in round s has finished s - 1, which is a barrier, so this
// rank is done with s - 2.
void Opening::disseminate(const Call& call, const Waiting& waiting) {
  const int n = channels_.size(), me = channels_.me();
  const Layout& layout = channels_.layout();
  const uint64_t sequence = sequence_++;
  const size_t box = layout.opening + (sequence % 2) * ((layout.detail - layout.opening) / 2);
  struct Range {
    uint64_t sequence, low, high;
  };
  const uint64_t hash = hash_of(call);
  Range range{sequence, hash, hash};
  for (int step = 1; step < n; step *= 2) {
    const int to = (me + step) % n, from = (me + n - step) % n;
    const Piece piece{&range, sizeof range};
    channels_.sent(to, channels_.put(to, box, &piece, 1, kOpen), waiting);
    channels_.await(from, kOpen, waiting);
    Range other;
    std::memcpy(&other, channels_.here_at(from, box), sizeof other);
    if (other.sequence != sequence) {
      fail(ErrorKind::protocol, name(call.op),
           "rank " + std::to_string(channels_.rank(from)) + " is at another operation",
           "sequence " + std::to_string(sequence), "sequence " + std::to_string(other.sequence));
    }
    range.low = std::min(range.low, other.low);
    range.high = std::max(range.high, other.high);
  }
  if (range.low == range.high) return;
  const Descriptor mine = descriptor_of(call);
  std::memcpy(message(), &mine, sizeof mine);
  tell_all(waiting);
  for (int p = 0; p < n; ++p) {
    if (p == me) {
      last_[size_t(p)] = mine;
      continue;
    }
    Descriptor& d = last_[size_t(p)];
    std::memcpy(&d, received(p), sizeof d);
    if (d.op > uint8_t(Op::plan_all_gather) || d.dtype > uint8_t(DType::boolean) ||
        d.reduce > uint8_t(ReduceOp::prod)) {
      fail(ErrorKind::protocol, name(call.op),
           "rank " + std::to_string(channels_.rank(p)) + " sent a descriptor that is not one");
    }
  }
  compare(call);
}

void Opening::compare(const Call& call) const {
  std::string given;
  const size_t most = 16;
  std::vector<std::pair<const Descriptor*, std::string>> kinds;
  for (int p = 0; p < channels_.size(); ++p) {
    const Descriptor& d = last_[size_t(p)];
    const auto kind =
        std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return equal(*k.first, d); });
    const std::string rank = std::to_string(channels_.rank(p));
    if (kind == kinds.end()) {
      kinds.emplace_back(&d, "rank " + rank);
    } else {
      kind->second += ", " + rank;
    }
  }
  bool shown_equal = false;
  for (size_t k = 0; k < kinds.size() && k < most; ++k) {
    const std::string what = text(*kinds[k].first);
    shown_equal = shown_equal || (k && what == text(*kinds[0].first));
    given += (k ? "; " : "") + kinds[k].second + ": " + what;
  }
  if (shown_equal) given += " (sizes per rank or options differ)";
  fail(ErrorKind::mismatch, name(call.op), "the ranks' calls do not match",
       "the same operation, size, dtype, reduction and root on all ranks", given,
       "make every rank call the same collectives in the same order");
}

// Two boxes suffice by the argument of exchange().
void Opening::tell_all(const Waiting& waiting) {
  const int n = channels_.size(), me = channels_.me();
  const Piece piece{message(), Layout::kHeader};
  const size_t box = channels_.layout().detail + (details_++ % 2) * Layout::kHeader;
  for (int i = 1; i < n; ++i) {
    const int p = (me + i) % n;
    channels_.sent(p, channels_.put(p, box, &piece, 1, kDetail), waiting);
  }
  for (int p = 0; p < n; ++p) {
    if (p != me) channels_.await(p, kDetail, waiting);
  }
}

const std::byte* Opening::received(int member) const {
  const size_t box = channels_.layout().detail + ((details_ - 1) % 2) * Layout::kHeader;
  return channels_.here_at(member, box);
}

uint64_t Opening::all_and(uint64_t bits, const Waiting& waiting) {
  message()[0] = bits;
  tell_all(waiting);
  for (int p = 0; p < channels_.size(); ++p) {
    if (p == channels_.me()) continue;
    uint64_t other;
    std::memcpy(&other, received(p), sizeof other);
    bits &= other;
  }
  return bits;
}

}  // namespace eager::comm
