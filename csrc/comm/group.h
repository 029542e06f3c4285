// Collectives over some ranks of a fabric.
//
// Every call is collective: all members make the same calls in the same order.  What differs
// between ranks (operation, size, dtype, root) is found before any data moves and raised on all of
// them as Error(mismatch).  Results are bit-identical on all ranks and from run to run: the
// algorithm depends on size, dtype, topology and the committed table alone, and the order in which
// an element's addends are combined depends on the algorithm alone.
//
// A group that has thrown peer_lost or timeout is broken: later calls throw at once.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dtype.h"
#include "fabric.h"
#include "meet.h"

namespace eager::comm {

// An operation that runs on the group's own thread, in the order of submission.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool done() const = 0;
  // Waits for the end; rethrows what went wrong.  False if `timeout` passed first.
  virtual bool wait(Duration timeout) = 0;
  virtual std::exception_ptr exception() const = 0;  // null while running or if all went well
};

// A collective over static memory: addresses were exchanged and the algorithm was chosen when it
// was made, so that a run allocates, looks up and copies nothing.
class Plan {
 public:
  virtual ~Plan() = default;
  // Begins: tells peers that the data is ready and issues the puts that need no answer.
  virtual void start() = 0;
  // Does the rest.  Plans of one group may overlap if all ranks start them in the same order and
  // finish them in that order.
  virtual void finish(bool patient = false) = 0;
  virtual const char* algorithm() const = 0;  // "direct" (shared memory) or "exchange"
};

struct GroupOptions {
  Duration timeout = std::chrono::seconds(300);
  std::string algorithm;  // forces one (tests, benchmarks): "one_shot", "direct", "ring",
                          // "halving_doubling", "hierarchical"; empty: the table
  std::string table;      // rules that come before the built-in ones: see choose.h
};

class Group {
 public:
  // Collective over `ranks` (ascending ranks of the fabric, this one among them).  `id` is the
  // same on all of them and belongs to no other living group, nor to one that has failed
  // (Fabric::failed); 0 <= id < kGroups.  `exchange` is among `ranks`, in this order.
  Group(Fabric&, std::vector<int> ranks, uint32_t id, const Rendezvous& exchange,
        const GroupOptions& = {});
  ~Group();

  int rank() const;  // within the group, as are all roots and peers below
  int size() const;
  const std::vector<int>& ranks() const;
  uint32_t id() const;

  // Blocking.  Called while submitted work is pending, they run after it.  Sizes are in elements
  // of dtype where there is one, else in bytes.  Memory is the caller's, any alignment.
  void all_reduce(void* data, size_t count, DType, ReduceOp);
  void reduce(void* data, size_t count, DType, ReduceOp, int root);  // others' data is unchanged
  // in: size() * count elements, out: count.  `in` may hold `out` at this rank's place.
  void reduce_scatter(const void* in, void* out, size_t count, DType, ReduceOp);
  void all_gather(const void* in, void* out, size_t bytes);  // out: size() * bytes; same remark
  void broadcast(void* data, size_t bytes, int root);
  void gather(const void* in, void* out, size_t bytes, int root);   // out: null but at the root
  void scatter(const void* in, void* out, size_t bytes, int root);  // in: null but at the root
  // send_bytes[i] to rank i, recv_bytes[i] from it, one after another.
  void all_to_all(const void* in, const std::vector<size_t>& send_bytes, void* out,
                  const std::vector<size_t>& recv_bytes);
  void barrier();
  // Matched by tag in order; a message longer than `bytes` is Error(mismatch) on both sides (on the
  // receiver's alone if it had to take the message in before it was asked for).
  // recv returns the length; `source` -1: from anyone, and *from says who.
  void send(const void* data, size_t bytes, int to, uint32_t tag = 0);
  size_t recv(void* data, size_t bytes, int source, uint32_t tag = 0, int* from = nullptr);

  // Static memory: offset (in bytes) and count lie in `region`, which must outlive the plan, as
  // the group must.
  std::unique_ptr<Plan> plan_all_reduce(const Region&, size_t offset, size_t count, DType,
                                        ReduceOp);
  std::unique_ptr<Plan> plan_reduce_scatter(const Region&, size_t offset, size_t count, DType,
                                            ReduceOp);  // rank r's share is left in its place
  std::unique_ptr<Plan> plan_all_gather(const Region&, size_t offset, size_t bytes);
  // (region holds size() shares of `count` elements or `bytes`, this rank's in its place)

  // Runs fn on the group's thread after all that was submitted before.  fn calls this group's
  // blocking methods.
  std::shared_ptr<Work> submit(std::function<void()> fn);
  // Point-to-point work has lanes of its own, so that an isend never waits for an irecv.
  std::shared_ptr<Work> isend(const void* data, size_t bytes, int to, uint32_t tag = 0);
  std::shared_ptr<Work> irecv(void* data, size_t bytes, int source, uint32_t tag = 0);

  // What the table says for an all_reduce of so many bytes here.
  std::string algorithm(size_t bytes) const;
  void set_timeout(Duration);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

inline constexpr uint32_t kCountersPerGroup = 16;
inline constexpr uint32_t kGroups = (kCounters - kReservedCounters) / kCountersPerGroup;

}  // namespace eager::comm
