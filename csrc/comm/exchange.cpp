// Building blocks of collectives: shares, transfers in chunks, and the exchange reduction.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core.h"
#include "reduce_kernels.h"

namespace eager::comm {

Team everyone(const Core& core) {
  Team team;
  team.member.resize(size_t(core.n));
  std::iota(team.member.begin(), team.member.end(), 0);
  team.me = core.me;
  return team;
}

Share share_of(size_t count, int parts, int part) {
  const size_t lines = (count + 63) / 64, k = size_t(part), n = size_t(parts);
  const size_t each = lines / n, more = lines % n;
  const size_t begin = k * each + std::min(k, more);
  const size_t end = begin + each + (k < more ? 1 : 0);
  return {std::min(begin * 64, count), std::min(end * 64, count)};
}

void finish_direct(Core& core, const Waiting& waiting) {
  for (int i = 1; i < core.n; ++i) core.channels.signal((core.me + i) % core.n, kDone);
  for (int p = 0; p < core.n; ++p) {
    if (p != core.me) core.channels.await(p, kDone, waiting);
  }
}

// Round k sends chunk k of every sending and then receives chunk k of every receiving.  Chunk k can
// be sent when its receiver is done with chunk k - kChunks, which it is in round k - kChunks; so
// whoever is in the earliest round can always go on.
void transfer(Core& core, const std::vector<Sending>& sendings,
              const std::vector<Receiving>& receivings, const Waiting& waiting) {
  Channels& channels = core.channels;
  const size_t chunk = channels.layout().chunk;
  for (const Sending& s : sendings) {
    if (!s.landing || !s.bytes) continue;
    channels.note(
        s.to, channels.put(s.landing->target, s.landing->offset + s.at, s.data, s.bytes, kLanded));
  }
  for (size_t begin = 0;; begin += chunk) {
    bool more = false;
    for (const Sending& s : sendings) {
      if (s.landing || begin >= s.bytes) continue;
      channels.send(s.to, s.data + begin, std::min(chunk, s.bytes - begin), waiting);
      more = true;
    }
    for (const Receiving& r : receivings) {
      if (r.landed || begin >= r.bytes) continue;
      const size_t size = std::min(chunk, r.bytes - begin);
      std::memcpy(r.data + begin, channels.receive(r.from, waiting), size);
      channels.release(r.from);
      core.count_staged(size);
      more = true;
    }
    if (!more) break;
  }
  for (const Receiving& r : receivings) {
    if (r.landed && r.bytes) channels.await(r.from, kLanded, waiting);
  }
}

namespace {

// The exchange goes through blocks of size() pieces, piece k for member k.  In step b of the loop
// a member sends its pieces of block b + 1, reduces its own piece of block b, passes the result
// on, and takes in the results of block b - 1: what it waits for was sent one step ago.
//
// Per pair the stream holds S0 S1 R0 S2 R1 S3 R2 …  (S: pieces, R: results), and is read in that
// order.  With kChunks = 4, sending S(b+1) in step b waits for the receiver to be done with S(b-1),
// and R(b) for R(b-2); the receiver is done with both in its step b - 1, for which all it needs
// was sent in this member's steps before b.  So nobody waits for ever.
class Exchange {
 public:
  Exchange(Core& core, const Team& team, const std::byte* in, std::byte* out, size_t count,
           const Reduction& how, Result result, int root, const Waiting& waiting)
      : core_(core),
        channels_(core.channels),
        team_(team),
        in_(in),
        out_(out),
        count_(count),
        how_(how),
        result_(result),
        root_(root),
        waiting_(waiting),
        item_(item_size(how.dtype)) {
    // Chunks fit a second-level cache, so that scratch costs no memory traffic.
    piece_ = channels_.layout().chunk / item_;
    const size_t most = share(0).size();  // the first share is the largest
    blocks_ = (most + piece_ - 1) / piece_;
    operands_.resize(size_t(team.size()));
    if (result == Result::root && team.me != root) own_.resize(std::min(piece_, most) * item_);
  }

  void run() {
    if (blocks_) send_pieces(0);
    for (size_t b = 0; b < blocks_; ++b) {
      if (b + 1 < blocks_) send_pieces(b + 1);
      reduce_piece(b);
      if (b) take_results(b - 1);
    }
    if (blocks_) take_results(blocks_ - 1);
  }

 private:
  Share share(int k) const {
    if (result_ == Result::owner) return {size_t(k) * count_, size_t(k + 1) * count_};
    return share_of(count_, team_.size(), k);
  }
  // Member k's piece of block b, in elements of `in`.
  Share piece(int k, size_t b) const {
    const Share s = share(k);
    return {std::min(s.begin + b * piece_, s.end), std::min(s.begin + (b + 1) * piece_, s.end)};
  }
  bool gets_result(int k) const {
    return result_ == Result::everyone || (result_ == Result::root && k == root_);
  }

  // Member k's results land in its registered memory, not in the stream.
  bool lands(int k) const {
    return !channels_.mapped() && core_.opening.complete() && result_ != Result::owner &&
           core_.opening.out(team_.member[size_t(k)]).known;
  }

  void send_pieces(size_t b) {
    for (int i = 1; i < team_.size(); ++i) {
      const int k = (team_.me + i) % team_.size();
      const Share p = piece(k, b);
      if (p.size() == 0) continue;
      channels_.send(team_.member[size_t(k)], in_ + p.begin * item_, p.size() * item_, waiting_);
    }
  }

  void reduce_piece(size_t b) {
    const Share p = piece(team_.me, b);
    if (p.size() == 0) return;
    const int n = team_.size();
    for (int k = 0; k < n; ++k) {
      operands_[size_t(k)] = k == team_.me ? in_ + p.begin * item_
                                           : channels_.receive(team_.member[size_t(k)], waiting_);
    }
    std::byte* own = out_ + p.begin * item_;
    if (result_ == Result::owner) own = out_ + (p.begin - share(team_.me).begin) * item_;
    if (!own_.empty()) own = own_.data();
    results_.assign(1, own);
    const size_t bytes = p.size() * item_;
    const bool in_place = channels_.mapped();  // results are stored where they are read
    for (int i = 1; in_place && i < n; ++i) {
      const int k = (team_.me + i) % n;
      if (gets_result(k)) {
        results_.push_back(channels_.reserve(team_.member[size_t(k)], waiting_));
        core_.count_direct(bytes);
      }
    }
    comm::reduce(how_.dtype, how_.op, operands_.data(), n, results_.data(), int(results_.size()),
                 p.size(), how_.divisor);
    for (int i = 1; i < n; ++i) {
      const int k = (team_.me + i) % n, to = team_.member[size_t(k)];
      channels_.release(to);
      if (!gets_result(k)) continue;
      if (in_place) {
        channels_.commit(to);
      } else {
        if (lands(k)) {
          const Reach& there = core_.opening.out(to);
          channels_.note(
              to, channels_.put(there.target, there.offset + p.begin * item_, own, bytes, kLanded));
        } else {
          channels_.send(to, own, bytes, waiting_);
        }
        if (!own_.empty()) channels_.settle(waiting_);  // the next piece takes its place
      }
    }
  }

  void take_results(size_t b) {
    if (!gets_result(team_.me)) return;
    for (int i = 1; i < team_.size(); ++i) {
      const int k = (team_.me + team_.size() - i) % team_.size(), from = team_.member[size_t(k)];
      const Share p = piece(k, b);
      if (p.size() == 0) continue;
      // The old contents of this piece have been sent: the result was made from them.
      if (lands(team_.me)) {
        channels_.await(from, kLanded, waiting_);
        continue;
      }
      const size_t bytes = p.size() * item_;
      const std::byte* result = channels_.receive(from, waiting_);
      std::memcpy(out_ + p.begin * item_, result, bytes);
      channels_.release(from);
      core_.count_staged(bytes);
    }
  }

  Core& core_;
  Channels& channels_;
  const Team& team_;
  const std::byte* in_;
  std::byte* out_;
  const size_t count_;
  const Reduction how_;
  const Result result_;
  const int root_;
  const Waiting& waiting_;
  const size_t item_;
  size_t piece_, blocks_;
  std::vector<const void*> operands_;
  std::vector<void*> results_;
  std::vector<std::byte> own_;  // results that only the root keeps
};

}  // namespace

void exchange_reduce(Core& core, const Team& team, const std::byte* in, std::byte* out,
                     size_t count, const Reduction& how, Result result, int root,
                     const Waiting& waiting) {
  Exchange(core, team, in, out, count, how, result, root, waiting).run();
}

}  // namespace eager::comm
