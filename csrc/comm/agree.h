// The opening round of every collective: all members tell what they were asked to do, find out
// whether it is the same, and learn where the others' memory is.  It is a barrier as well.
//
// Groups of up to kWell members: everyone puts its descriptor (and a payload, if it is small) to
// everyone.  Larger groups: minimum and maximum of a hash of what must be equal, by dissemination
// (Hensgen, Finkel, Manber 1988: log2(n) rounds); only if they differ, everyone tells everyone.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dtype.h"
#include "scratch.h"

namespace eager::comm {

enum class Op : uint8_t {
  init,
  all_reduce,
  reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  gather,
  scatter,
  all_to_all,
  barrier,
  plan_all_reduce,
  plan_reduce_scatter,
  plan_all_gather
};
const char* name(Op);

// Where some memory is, if it lies in a region.
struct Place {
  const Region* region = nullptr;
  size_t offset = 0;
};

// What one rank was asked to do.  All but `in` and `out` must be the same on all ranks.
struct Call {
  explicit Call(Op op, uint64_t count = 0, int root = -1, DType dtype = DType::u8,
                ReduceOp reduce = ReduceOp::sum)
      : op(op), dtype(dtype), reduce(reduce), root(root), count(count) {}
  Op op;
  DType dtype;
  ReduceOp reduce;
  int root;
  uint64_t count;
  uint32_t extra = 0;  // hash of anything else
  Place in, out;       // memory that peers may read, memory that they may write
};

struct Descriptor {
  uint64_t sequence, count;
  uint8_t op, dtype, reduce, flags;
  int32_t root;
  uint32_t in_region, out_region;
  uint64_t in_offset, out_offset;
  uint32_t payload, extra, magic, hash;
};
static_assert(sizeof(Descriptor) == Layout::kHeader);

// A member's memory as this rank reaches it.
struct Reach {
  Target target;
  size_t offset = 0;
  bool known = false;   // target is valid: puts may go there
  bool mapped = false;  // every member can load and store it
  // Where `bytes` from the offset on are; throws Error(protocol) if the region ends before.
  std::byte* data(size_t bytes) const;
};

class Opening {
 public:
  static constexpr int kWell = 8;

  explicit Opening(Channels& channels);

  // The round.  `payload` travels along: at most layout().inline_bytes, and not beside `in` or
  // `out`.  Throws Error(mismatch) on all members, who may go on afterwards.
  void open(const Call&, const void* payload, size_t bytes, const Waiting&);

  // About the last round, if the group is small enough that all know all.
  bool complete() const { return channels_.size() <= kWell; }
  const std::byte* payload(int member) const { return payload_[member]; }
  size_t payload_bytes(int member) const { return payload_bytes_[member]; }
  const Reach& in(int member) const { return in_[member]; }
  const Reach& out(int member) const { return out_[member]; }
  // True if every member gave `in` in a region that all can load and store.
  bool all_in_mapped() const;

  uint64_t sequence() const { return sequence_.load(std::memory_order_relaxed); }

  // True on all members if it was on all.
  bool unanimous(bool mine, const Waiting& waiting) { return all_and(mine, waiting) != 0; }
  // Regions are to be looked at for mapped(): the members agreed that all map all scratch.
  void set_mapped() { mapped_ = true; }

 private:
  struct Known {
    Target target;
    bool mapped = false;
  };
  void exchange(const Call&, const void* payload, size_t bytes, const Waiting&);
  void disseminate(const Call&, const Waiting&);
  void learn(const Waiting&);
  Reach reach(int member, uint32_t region, uint64_t offset) const;
  void compare(const Call&) const;
  // Everyone puts its message() to everyone; received(p) says where p's are, until the next but
  // one.
  void tell_all(const Waiting&);
  uint64_t* message() { return message_[details_ % 2]; }  // what the next tell_all() tells
  const std::byte* received(int member) const;
  uint64_t all_and(uint64_t bits, const Waiting&);

  Channels& channels_;
  bool mapped_ = false;
  std::atomic<uint64_t> sequence_{0};
  uint64_t details_ = 0;
  std::map<std::pair<int, uint32_t>, Known> known_;  // (member, region)
  std::vector<Descriptor> last_;
  // What is being sent: here and not on the stack, as transports read it until sent().
  struct Outgoing {
    Descriptor descriptor;
    Key keys[kWell][2];
  };
  Outgoing outgoing_[2];
  uint64_t message_[2][Layout::kHeader / 8] = {};
  const std::byte* payload_[kWell] = {};
  size_t payload_bytes_[kWell] = {};
  Reach in_[kWell], out_[kWell];
};

}  // namespace eager::comm
