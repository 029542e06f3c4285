// What collectives stand on: one-sided writes into memory that the peer registered, counters that
// tell of their arrival, and nothing else.
//
// A fabric joins `size` ranks.  `Mesh` (mesh.h) is the real one, with a Link to every peer;
// tests/local_fabric.h joins threads of one process.  There is no state outside the objects:
// several ranks can live in one process.  All methods may be called from several threads at once.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "error.h"

namespace eager::comm {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
using Duration = std::chrono::nanoseconds;

// Local memory that peers may write.  Owned by the fabric; valid until released.
struct Region {
  uint32_t id = 0;  // unique within the rank, never reused
  std::byte* base = nullptr;
  size_t length = 0;
};

// What a peer must know to write a region: made by its owner for one peer, sent by any means,
// imported there.  Fabrics check every field of a key they import.
using Key = std::array<std::byte, 64>;

// A peer's region as seen from here.
struct Target {
  int peer = -1;
  uint32_t region = 0;  // its id at the peer
  size_t length = 0;
  std::byte* mapped = nullptr;     // where this process can load and store it directly, or null
  uint64_t address = 0;            // the transport's own: remote address,
  std::array<uint32_t, 4> keys{};  // and remote key per device
};

struct Piece {
  const void* data;
  size_t length;
};

// Counters: kCounters per ordered pair of ranks, in 32 bits that wrap around.  The first
// kReservedCounters belong to the fabric; users agree on the rest (see Group).
inline constexpr uint32_t kCounters = 4096;
inline constexpr uint32_t kReservedCounters = 16;
inline constexpr uint32_t kNoCounter = UINT32_MAX;  // a put that tells nobody

// For whom and for how long a wait is; becomes the text of PeerLost.
struct Waiting {
  const char* op = "";    // "all_reduce"
  uint64_t sequence = 0;  // which call of the group
  uint32_t group = 0;
  Deadline deadline;
  bool patient = false;  // a background thread: spin little, leave the core to computation
};
// "all_reduce, call 17 of group 0": what errors say of a wait.
std::string in_flight(const Waiting&);

// Counted with relaxed atomics; read by tests and by eager.distributed.info().
struct Stats {
  std::atomic<uint64_t> puts{0}, put_bytes{0};  // writes into peers' memory
  std::atomic<uint64_t> direct_bytes{0};        // loads and stores of mapped peers' memory
  std::atomic<uint64_t> staged_bytes{0};        // copies between a user's memory and scratch
  std::atomic<uint64_t> sleeps{0};              // waits that outlasted their spinning
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Ranks with equal numbers share a host.  Numbered 0.. in order of their lowest rank.
  virtual int host(int rank) const = 0;
  // "self", "shm", "tcp", "verbs" (tests: "local"), and why it was chosen, for people.
  virtual const char* transport(int peer) const = 0;
  virtual std::string reason(int peer) const = 0;

  // New zeroed memory, page aligned, that every peer can be given a key to; peers on this host
  // can map it.  Throws Error(system) when there is no memory.
  virtual const Region& allocate(size_t length) = 0;
  virtual void release(const Region&) = 0;  // the caller knows that nobody uses it any more
  // The region that holds [data, data + length), or null.
  virtual const Region* find(const void* data, size_t length) const = 0;

  virtual Key key(const Region&, int peer) = 0;
  // Throws Error(protocol) if the key is not one that `peer` can have made.  Imports are cached.
  virtual Target import(int peer, const Key&) = 0;

  // Writes the pieces, one after another, to `offset` of the target; when they are all there, and
  // all earlier puts to that peer are too, its counter (this rank, `counter`) goes up by one.
  // The pieces may be any memory; transports register what they need and cache that.  May wait
  // for flow control.  Returns a ticket: see sent().  Throws Error(invalid) when the range does
  // not fit the target, Error(peer_lost) when the peer is known to be lost.
  virtual uint64_t put(const Target&, size_t offset, const Piece* pieces, int n,
                       uint32_t counter) = 0;
  // Advances the peer's counter alone, after all earlier puts to it.  A peer that has left the job
  // is told nothing; that is no error.
  virtual void signal(int peer, uint32_t counter) = 0;
  // Waits until the source memory of every put to `peer` up to `ticket` may be changed.
  virtual void sent(int peer, uint64_t ticket, const Waiting&) = 0;

  // How often `peer` has advanced (peer, counter) here.
  virtual uint32_t arrived(int peer, uint32_t counter) const = 0;
  // Waits until arrived(peer, counter) has reached `value` (difference as a signed number >= 0).
  // What the peer wrote before is then visible.  Spins for a while, then sleeps.
  // Throws Error(peer_lost) with the rank that is to blame: `peer`, or the one that `peer` itself
  // waits for; "in flight" in the text names op, group and sequence.  Never returns early.
  virtual void wait(int peer, uint32_t counter, uint32_t value, const Waiting&) = 0;

  // Waits in the same way until done(), which puts of one of these `n` peers bring about: it looks,
  // and does nothing.  Of several, one that is lost ends the wait, or all that have left.
  virtual void wait_until(const int* peers, size_t n, const Waiting&,
                          const std::function<bool()>& done) = 0;

  // Tells all peers that this rank gives up the group with this number, so that their waits in it
  // end with the same error.  Waits that fail have done so; what else fails has to say it.
  virtual void give_up(uint32_t /*group*/, const Error&) {}

  // Whether an operation of the group with this number was given up, here or by a peer that said
  // so.  Reports may still be under way, so a new group must not get the number.
  virtual bool failed(uint32_t group) const { return group == UINT32_MAX; }

  // The lowest rank known to be lost, or -1, and why.
  virtual int lost(std::string* why = nullptr) const = 0;

  Stats& stats() { return stats_; }

 protected:
  Stats stats_;
};

}  // namespace eager::comm
