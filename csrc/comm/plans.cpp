// Collectives over static memory.
//
// Members who can map each other's regions: each reduces its share from everyone's memory and
// stores it into everyone's.  Others: each puts the pieces of its data into landing memory at the
// members that reduce them, in chunks, and results go straight into everyone's region.  No byte is
// staged, and every element is reduced in rank order, rounded once.
#include <algorithm>
#include <cstring>

#include "core.h"
#include "reduce_kernels.h"

namespace eager::comm {
namespace {

constexpr size_t kChunk = 512 << 10;  // bytes; reducing one overlaps with the arrival of the next

// What members tell each other when a plan is made.
struct Invitation {
  Key region, landing;
  uint64_t offset;
};

// Memory of this rank that peers write while a plan runs.
class Landing {
 public:
  explicit Landing(Fabric& fabric) : fabric_(fabric) {}
  ~Landing() {
    if (region_) fabric_.release(*region_);
  }
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;
  void allocate(size_t bytes) { region_ = &fabric_.allocate(bytes); }
  explicit operator bool() const { return region_ != nullptr; }
  const Region& region() const { return *region_; }

 private:
  Fabric& fabric_;
  const Region* region_ = nullptr;
};

class StaticPlan final : public Plan {
 public:
  StaticPlan(Core& core, Op op, const Region& region, size_t offset, size_t count, DType dtype,
             ReduceOp reduce_op)
      : core_(core),
        channels_(core.channels),
        op_(op),
        how_{dtype, reduce_op, core.n},
        item_(item_size(dtype)),
        count_(count),
        landing_(core.fabric),
        members_(size_t(core.n)),
        out_(1) {
    const size_t total = op == Op::plan_all_reduce ? count : count * size_t(core.n);
    if (offset > region.length || total > (region.length - offset) / item_) {
      fail(ErrorKind::invalid, name(op), "the range does not lie in the region",
           "at most " + std::to_string(region.length) + " bytes",
           std::to_string(total) + " elements at byte " + std::to_string(offset));
    }
    own_ = region.base + offset;
    const Waiting waiting = core.waiting(name(op));
    core.opening.open(Call(op, count, -1, dtype, reduce_op), nullptr, 0, waiting);
    if (core.n > 1) introduce(region, offset, total * item_, waiting);
    for (int p = 0; p < core.n; ++p) prepare(p);
  }

  const char* algorithm() const override { return mapped_ ? "direct" : "exchange"; }

  void start() override {
    core_.guarded([&] {
      if (started_) fail(ErrorKind::invalid, name(op_), "started twice", "finish() in between");
      started_ = true;
      for (int i = 1; i < core_.n; ++i) begin((core_.me + i) % core_.n);
    });
  }

  void finish(bool patient) override {
    core_.guarded([&] {
      if (!started_) fail(ErrorKind::invalid, name(op_), "finished without a start");
      started_ = false;
      const Waiting waiting{name(op_), runs_++, core_.id,
                            Clock::now() + Duration(core_.timeout.load()), patient};
      if (op_ == Op::plan_all_gather) {
        gather(waiting);
      } else if (mapped_) {
        reduce_mapped(waiting);
      } else {
        reduce_landed(waiting);
      }
      for (int p = 0; p < core_.n; ++p) {
        if (p != core_.me && members_[size_t(p)].ticket) {
          channels_.sent(p, members_[size_t(p)].ticket, waiting);
        }
      }
    });
  }

 private:
  struct Member {
    Target region, landing;
    size_t offset = 0;    // of its memory, in its region
    uint64_t ticket = 0;  // of the last put to it
  };

  Share share(int k) const {
    if (op_ == Op::plan_all_reduce) return share_of(count_, core_.n, k);
    return {size_t(k) * count_, size_t(k + 1) * count_};
  }
  Share mine() const { return share(core_.me); }
  bool reduces() const { return op_ != Op::plan_all_gather; }
  size_t most() const {
    size_t elements = 0;
    for (int k = 0; k < core_.n; ++k) elements = std::max(elements, share(k).size());
    return elements * item_;
  }

  void introduce(const Region& region, size_t offset, size_t bytes, const Waiting& waiting) {
    // A member can be written by shared memory if its scratch can; then nothing lands.
    if (!core_.mapped() && reduces()) {
      landing_.allocate(std::max<size_t>(1, most()) * size_t(core_.n));
    }
    const size_t n = size_t(core_.n);
    std::vector<Invitation> out(n), in(n);
    std::vector<Sending> sendings;
    std::vector<Receiving> receivings;
    for (int p = 0; p < core_.n; ++p) {
      if (p == core_.me) continue;
      Invitation& to = out[size_t(p)];
      to.region = core_.fabric.key(region, channels_.rank(p));
      if (landing_) to.landing = core_.fabric.key(landing_.region(), channels_.rank(p));
      to.offset = offset;
      sendings.push_back({p, reinterpret_cast<const std::byte*>(&to), sizeof to});
      receivings.push_back({p, reinterpret_cast<std::byte*>(&in[size_t(p)]), sizeof to});
    }
    transfer(core_, sendings, receivings, waiting);
    channels_.settle(waiting);
    bool mapped = true;
    for (int p = 0; p < core_.n; ++p) {
      if (p == core_.me) continue;
      Member& member = members_[size_t(p)];
      const Invitation& from = in[size_t(p)];
      member.region = core_.fabric.import(channels_.rank(p), from.region);
      if (landing_) member.landing = core_.fabric.import(channels_.rank(p), from.landing);
      member.offset = size_t(from.offset);
      const bool fits = from.offset <= member.region.length &&
                        bytes <= member.region.length - from.offset &&
                        (!landing_ || member.landing.length >= most() * n);
      if (!fits) {
        fail(ErrorKind::protocol, name(op_),
             "rank " + std::to_string(channels_.rank(p)) +
                 " told of less memory than the plan needs");
      }
      mapped = mapped && member.region.mapped;
    }
    mapped_ = core_.opening.unanimous(mapped, waiting);
    if (!mapped_ && !landing_ && reduces()) {
      fail(ErrorKind::invalid, name(op_), "the region cannot be mapped by all members",
           "memory from allocate()", "adopted memory in a group that shares memory");
    }
  }

  void prepare(int p) {
    const Share s = mine();
    std::byte* base = p == core_.me ? own_ : members_[size_t(p)].region.mapped;
    if (mapped_ && p != core_.me) base += members_[size_t(p)].offset;
    std::byte* at = nullptr;
    if (p == core_.me || mapped_) {
      at = base + s.begin * item_;
    } else if (landing_) {
      at = landing_.region().base + size_t(p) * most();
    }
    in_.push_back(at);
    if (p == core_.me) out_[0] = at;
    if (p != core_.me && mapped_ && op_ == Op::plan_all_reduce) out_.push_back(at);
  }

  // To member p: that this rank's data is ready; the pieces that p reduces, if they land there.
  // Its landing memory is free: this rank finished the last run, so p was done with it (its result
  // came, or it said so).
  void begin(int p) {
    if (mapped_ || !reduces()) return channels_.signal(p, kPlanReady);
    Member& member = members_[size_t(p)];
    const Share s = share(p);
    const size_t size = s.size() * item_;
    for (size_t at = 0; at < size; at += kChunk) {
      member.ticket =
          channels_.put(member.landing, size_t(core_.me) * most() + at, own_ + s.begin * item_ + at,
                        std::min(kChunk, size - at), kPlanReady);
    }
    // Without elements there is nothing to wait for, but p's memory must be known to be ready.
    if (size == 0) channels_.signal(p, kPlanReady);
  }

  void await_all(Slot slot, const Waiting& waiting) {
    for (int p = 0; p < core_.n; ++p) {
      if (p != core_.me) channels_.await(p, slot, waiting);
    }
  }
  void signal_all(Slot slot) {
    for (int i = 1; i < core_.n; ++i) channels_.signal((core_.me + i) % core_.n, slot);
  }

  void reduce_mapped(const Waiting& waiting) {
    await_all(kPlanReady, waiting);
    const size_t size = mine().size();
    reduce(how_.dtype, how_.op, in_.data(), core_.n, out_.data(), int(out_.size()), size,
           how_.divisor);
    core_.count_direct(size * item_ * (in_.size() + out_.size() - 2));
    signal_all(kPlanStep);
    await_all(kPlanStep, waiting);
  }

  void reduce_landed(const Waiting& waiting) {
    const Share s = mine();
    const size_t size = s.size() * item_;
    std::vector<const void*>& in = operands_;
    in.resize(in_.size());
    for (size_t at = 0; at < size || at == 0; at += kChunk) {
      await_all(kPlanReady, waiting);
      const size_t bytes = std::min(kChunk, size - at);
      for (size_t k = 0; k < in.size(); ++k) in[k] = static_cast<const std::byte*>(in_[k]) + at;
      std::byte* own = static_cast<std::byte*>(out_[0]) + at;
      void* out = own;
      reduce(how_.dtype, how_.op, in.data(), core_.n, &out, 1, bytes / item_, how_.divisor);
      if (op_ == Op::plan_all_reduce && bytes) pass_on(own, s.begin * item_ + at, bytes);
    }
    if (op_ == Op::plan_reduce_scatter) {
      signal_all(kPlanStep);  // done with what landed
      return await_all(kPlanStep, waiting);
    }
    for (int i = 1; i < core_.n; ++i) {
      const int p = (core_.me + core_.n - i) % core_.n;
      const size_t theirs = share(p).size() * item_;
      for (size_t at = 0; at < theirs; at += kChunk) channels_.await(p, kPlanStep, waiting);
    }
  }

  // To everyone's memory.  They have started: what this was made from came from them.
  void pass_on(const std::byte* data, size_t at, size_t bytes) {
    for (int i = 1; i < core_.n; ++i) {
      const int p = (core_.me + i) % core_.n;
      Member& member = members_[size_t(p)];
      member.ticket = channels_.put(member.region, member.offset + at, data, bytes, kPlanStep);
    }
  }

  void gather(const Waiting& waiting) {
    await_all(kPlanReady, waiting);
    const Share s = mine();
    if (s.size()) {
      pass_on(own_ + s.begin * item_, s.begin * item_, s.size() * item_);
    } else {
      signal_all(kPlanStep);
    }
    await_all(kPlanStep, waiting);
  }

  Core& core_;
  Channels& channels_;
  const Op op_;
  const Reduction how_;
  const size_t item_, count_;
  std::byte* own_ = nullptr;
  Landing landing_;
  bool mapped_ = true, started_ = false;
  uint64_t runs_ = 0;
  std::vector<Member> members_;
  std::vector<const void*> in_, operands_;
  std::vector<void*> out_;
};

}  // namespace

std::unique_ptr<Plan> make_plan(Core& core, Op op, const Region& region, size_t offset,
                                size_t count, DType dtype, ReduceOp reduce_op) {
  check_reduction(name(op), dtype, reduce_op);
  return std::make_unique<StaticPlan>(core, op, region, offset, count, dtype, reduce_op);
}

}  // namespace eager::comm
