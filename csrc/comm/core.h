// What the collectives of one group share, and their entry points.  Internal to csrc/comm.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "agree.h"
#include "choose.h"
#include "error.h"
#include "group.h"
#include "scratch.h"

namespace eager::comm {

// Memory from this size on is looked up among the fabric's regions; smaller data is copied through
// scratch faster than a region can be found.
inline constexpr size_t kRegionFrom = 32 << 10;

struct Core {
  Core(Fabric& fabric, std::vector<int> ranks, int me, uint32_t id, const GroupOptions& options)
      : fabric(fabric),
        channels(fabric, ranks, me, kReservedCounters + id * kCountersPerGroup),
        opening(channels),
        table(options.table),
        n(int(ranks.size())),
        me(me),
        id(id) {}

  Fabric& fabric;
  Channels channels;
  Opening opening;
  Table table;
  std::string forced;  // algorithm
  const int n, me;
  const uint32_t id;
  Reachability reachability = Reachability::network;
  std::vector<std::vector<int>> hosts;  // members of each host, ascending
  std::atomic<Duration::rep> timeout{0};

  bool mapped() const { return reachability == Reachability::mapped; }
  Algorithm choose(size_t bytes) const { return choose(reachability, bytes); }
  Algorithm choose(Reachability how, size_t bytes) const {
    return forced.empty() ? table.choose(how, n, bytes) : algorithm_named(forced);
  }
  Waiting waiting(const char* op, bool patient = false) const {
    running_op_.store(op, std::memory_order_relaxed);
    return {op, opening.sequence(), id, Clock::now() + Duration(timeout.load()), patient};
  }
  Place place(const void* data, size_t bytes) const {
    if (bytes < kRegionFrom || !opening.complete()) return {};
    const Region* region = fabric.find(data, bytes);
    if (!region) return {};
    return {region, size_t(static_cast<const std::byte*>(data) - region->base)};
  }
  void count_staged(size_t bytes) {
    fabric.stats().staged_bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
  // Runs f(); remembers failures after which the members are no longer in step.  Throws at once if
  // there was one.
  template <class F>
  void guarded(const F& f) {
    check_usable();
    try {
      f();
    } catch (const Error& e) {
      const Error told = with_in_flight(e);
      note_failure(told);
      throw told;
    } catch (...) {  // out of the fabric's poll(): signals
      note_failure(Error(ErrorKind::timeout, "Group: a collective was interrupted on this rank"));
      throw;
    }
  }
  void check_usable();
  void note_failure(const Error&);
  // Says which call was under way, if a put failed, which does not know.
  Error with_in_flight(const Error&) const;

  void count_direct(size_t bytes) {
    fabric.stats().direct_bytes.fetch_add(bytes, std::memory_order_relaxed);
  }

 private:
  std::mutex broken_mutex_;
  std::unique_ptr<Error> broken_;  // why, once peers can no longer be counted on
  mutable std::atomic<const char*> running_op_{""};
};

// Some members of a group, in an order that all of them use; `me` is this rank's place.
struct Team {
  std::vector<int> member;
  int me = 0;
  int size() const { return int(member.size()); }
};
Team everyone(const Core&);

// `count` elements are cut into shares whose inner borders are multiples of 64 elements, so that no
// cache line has two writers (if the memory is aligned).
struct Share {
  size_t begin, end;
  size_t size() const { return end - begin; }
};
Share share_of(size_t count, int parts, int part);

// Who gets what exchange_reduce() computed.
enum class Result { everyone, kept, owner, root };
// Every member reduces its share of all members' elements in the order of the team, and passes the
// result on, or keeps it in its place.  `in` holds `count` elements, and member k's share is
// share_of(count, size, k).  Result::owner: `in` holds size() * count elements, and `out` gets the
// k-th count of them, reduced.  `in` may be `out`.  divisor: see reduce().  Without shared memory,
// results go straight to where the opening round said that `out` is.
struct Reduction {
  DType dtype;
  ReduceOp op;
  int divisor;
};
void exchange_reduce(Core&, const Team&, const std::byte* in, std::byte* out, size_t count,
                     const Reduction&, Result, int root, const Waiting&);
// `shift`: of `data` from where the opening round said that this rank's memory is, in bytes.
void ring_all_reduce(Core&, const Team&, std::byte* data, size_t count, const Reduction&,
                     const Waiting&, size_t shift = 0);
void halving_doubling_all_reduce(Core&, const Team&, std::byte* data, size_t count,
                                 const Reduction&, const Waiting&);
void hierarchical_all_reduce(Core&, std::byte* data, size_t count, const Reduction&,
                             const Waiting&);

// One direction of a transfer between two members, of any size.  When `landing` is given, the
// bytes go straight there (the sender's view), or come straight to their place (the receiver's,
// `landed`); else they take the stream.
struct Sending {
  int to;
  const std::byte* data;
  size_t bytes;
  const Reach* landing = nullptr;
  size_t at = 0;  // offset from the landing's start
};
struct Receiving {
  int from;
  std::byte* data;
  size_t bytes;
  bool landed = false;
};
// Does all of them, chunk after chunk, interleaved.  Every chunk sent must be received by its
// receiver's transfer() in the same order.
void transfer(Core&, const std::vector<Sending>&, const std::vector<Receiving>&, const Waiting&);

// Tells all others that this rank no longer touches their memory, and waits to be told the same.
void finish_direct(Core&, const Waiting&);

// The collectives.  Each starts with an opening round.
void all_reduce(Core&, void* data, size_t count, DType, ReduceOp, bool patient);
void reduce(Core&, void* data, size_t count, DType, ReduceOp, int root, bool patient);
void reduce_scatter(Core&, const void* in, void* out, size_t count, DType, ReduceOp, bool patient);
void all_gather(Core&, const void* in, void* out, size_t bytes, bool patient);
void broadcast(Core&, void* data, size_t bytes, int root, bool patient);
void gather(Core&, const void* in, void* out, size_t bytes, int root, bool patient);
void scatter(Core&, const void* in, void* out, size_t bytes, int root, bool patient);
void all_to_all(Core&, const void* in, const std::vector<size_t>& send_bytes, void* out,
                const std::vector<size_t>& recv_bytes, bool patient);
void barrier(Core&, bool patient);

// Collective; `op` is one of the plans.
std::unique_ptr<Plan> make_plan(Core&, Op op, const Region&, size_t offset, size_t count, DType,
                                ReduceOp);

}  // namespace eager::comm
