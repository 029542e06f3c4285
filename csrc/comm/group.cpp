#include "group.h"

#include <algorithm>

#include "core.h"
#include "point_to_point.h"
#include "work.h"

namespace eager::comm {

struct Group::Impl : Core {
  Impl(Fabric& fabric, const std::vector<int>& ranks, int me, uint32_t id,
       const GroupOptions& options)
      : Core(fabric, ranks, me, id, options), ranks(ranks), messages(*this) {
    forced = options.algorithm;
    if (!forced.empty()) algorithm_named(forced);
    timeout = options.timeout.count();
  }

  const std::vector<int> ranks;
  Messages messages;
  std::mutex running;  // one collective at a time
  // Last, so that their threads end before what they use.
  Worker worker, sender, receiver;

  void check_root(const char* op, int root) const {
    if (root >= 0 && root < n) return;
    fail(ErrorKind::invalid, op, "there is no such rank in the group",
         "0 to " + std::to_string(n - 1), std::to_string(root));
  }

  // A collective: here and now if nothing is pending, else after that, on the group's thread.
  template <class F>
  void collective(const F& f) {
    if (worker.current()) {
      const std::lock_guard lock(running);
      return guarded([&] { f(true); });
    }
    {
      const std::lock_guard lock(running);
      if (worker.idle()) return guarded([&] { f(false); });
    }
    worker
        .submit([&] {
          const std::lock_guard lock(running);
          guarded([&] { f(true); });
        })
        ->wait(Duration::max());
  }

  // The same in a lane for messages.
  template <class F>
  void message(Worker& lane, const F& f) {
    if (lane.idle() || lane.current()) return guarded([&] { f(false); });
    lane.submit([&] { guarded([&] { f(true); }); })->wait(Duration::max());
  }
};

void Core::check_usable() {
  const std::lock_guard lock(broken_mutex_);
  if (!broken_) return;
  fail(broken_->kind, "Group", "the group is broken since an earlier failure", "", broken_->what(),
       "make a new group of the ranks that are left", broken_->peer);
}

Error Core::with_in_flight(const Error& e) const {
  const std::string text = e.what();
  if (e.kind != ErrorKind::peer_lost || text.find("in flight: ") != std::string::npos) return e;
  const Waiting w{running_op_.load(std::memory_order_relaxed), opening.sequence(), id, {}};
  return Error(e.kind, text + "\n  given: in flight: " + in_flight(w), e.peer);
}

void Core::note_failure(const Error& e) {
  if (e.kind == ErrorKind::invalid || e.kind == ErrorKind::mismatch) return;
  {
    const std::lock_guard lock(broken_mutex_);
    if (!broken_) broken_ = std::make_unique<Error>(e);
  }
  fabric.give_up(id, e);
}

namespace {

// Groups members by host and finds out what kind of group this is.
void look_around(Core& core, const std::vector<int>& ranks, const Waiting& waiting) {
  std::vector<int> numbers;
  for (int p = 0; p < core.n; ++p) {
    const int host = core.fabric.host(ranks[size_t(p)]);
    const auto found = std::find(numbers.begin(), numbers.end(), host);
    if (found == numbers.end()) {
      numbers.push_back(host);
      core.hosts.push_back({p});
    } else {
      core.hosts[size_t(found - numbers.begin())].push_back(p);
    }
  }
  const bool mapped = core.channels.mapped();
  if (core.n == 1 || core.opening.unanimous(mapped, waiting)) {
    core.reachability = Reachability::mapped;
    core.opening.set_mapped();
    return;
  }
  core.channels.set_unmapped();
  const size_t local = core.hosts[0].size();
  const bool equal = std::all_of(core.hosts.begin(), core.hosts.end(),
                                 [&](const auto& host) { return host.size() == local; });
  const bool several = core.hosts.size() > 1;
  core.reachability = equal && several && local > 1 ? Reachability::mixed : Reachability::network;
}

uint32_t hash_of(const std::string& text) {  // FNV-1a
  uint32_t h = 2166136261;
  for (const char c : text) h = (h ^ uint8_t(c)) * 16777619;
  return h;
}

int place_of(const Fabric& fabric, const std::vector<int>& ranks, uint32_t id) {
  const auto found = std::find(ranks.begin(), ranks.end(), fabric.rank());
  const bool ascending = std::is_sorted(ranks.begin(), ranks.end()) &&
                         std::adjacent_find(ranks.begin(), ranks.end()) == ranks.end();
  if (found == ranks.end() || !ascending || ranks.front() < 0 || ranks.back() >= fabric.size()) {
    std::string given;
    for (const int r : ranks) given += (given.empty() ? "" : ", ") + std::to_string(r);
    fail(ErrorKind::invalid, "Group", "not a set of ranks that holds this one",
         "ascending ranks below " + std::to_string(fabric.size()) + ", among them " +
             std::to_string(fabric.rank()),
         given);
  }
  if (id >= kGroups) {
    fail(ErrorKind::invalid, "Group", "there is no such id", "0 to " + std::to_string(kGroups - 1),
         std::to_string(id), "release groups that are not needed and use their ids again");
  }
  return int(found - ranks.begin());
}

}  // namespace

Group::Group(Fabric& fabric, std::vector<int> ranks, uint32_t id, const Rendezvous& exchange,
             const GroupOptions& options)
    : impl_(std::make_unique<Impl>(fabric, ranks, place_of(fabric, ranks, id), id, options)) {
  Impl& g = *impl_;
  const Waiting waiting = g.waiting("Group");
  if (g.n > 1) g.channels.join(exchange(g.channels.introduce()), waiting);
  look_around(g, ranks, waiting);
  Call call(Op::init, uint64_t(g.n));
  call.extra = hash_of(options.algorithm + "\n" + options.table);
  g.opening.open(call, nullptr, 0, waiting);
}

Group::~Group() = default;

int Group::rank() const { return impl_->me; }
int Group::size() const { return impl_->n; }
const std::vector<int>& Group::ranks() const { return impl_->ranks; }
uint32_t Group::id() const { return impl_->id; }
std::string Group::algorithm(size_t bytes) const { return name(impl_->choose(bytes)); }
void Group::set_timeout(Duration timeout) { impl_->timeout = timeout.count(); }

void Group::all_reduce(void* data, size_t count, DType dtype, ReduceOp op) {
  impl_->collective(
      [&](bool patient) { comm::all_reduce(*impl_, data, count, dtype, op, patient); });
}

void Group::reduce(void* data, size_t count, DType dtype, ReduceOp op, int root) {
  impl_->check_root("reduce", root);
  impl_->collective(
      [&](bool patient) { comm::reduce(*impl_, data, count, dtype, op, root, patient); });
}

void Group::reduce_scatter(const void* in, void* out, size_t count, DType dtype, ReduceOp op) {
  impl_->collective(
      [&](bool patient) { comm::reduce_scatter(*impl_, in, out, count, dtype, op, patient); });
}

void Group::all_gather(const void* in, void* out, size_t bytes) {
  impl_->collective([&](bool patient) { comm::all_gather(*impl_, in, out, bytes, patient); });
}

void Group::broadcast(void* data, size_t bytes, int root) {
  impl_->check_root("broadcast", root);
  impl_->collective([&](bool patient) { comm::broadcast(*impl_, data, bytes, root, patient); });
}

void Group::gather(const void* in, void* out, size_t bytes, int root) {
  impl_->check_root("gather", root);
  impl_->collective([&](bool patient) { comm::gather(*impl_, in, out, bytes, root, patient); });
}

void Group::scatter(const void* in, void* out, size_t bytes, int root) {
  impl_->check_root("scatter", root);
  impl_->collective([&](bool patient) { comm::scatter(*impl_, in, out, bytes, root, patient); });
}

void Group::all_to_all(const void* in, const std::vector<size_t>& send_bytes, void* out,
                       const std::vector<size_t>& recv_bytes) {
  impl_->collective(
      [&](bool patient) { comm::all_to_all(*impl_, in, send_bytes, out, recv_bytes, patient); });
}

void Group::barrier() {
  impl_->collective([&](bool patient) { comm::barrier(*impl_, patient); });
}

void Group::send(const void* data, size_t bytes, int to, uint32_t tag) {
  impl_->messages.check_peer("send", to);
  impl_->message(impl_->sender,
                 [&](bool patient) { impl_->messages.send(data, bytes, to, tag, patient); });
}

size_t Group::recv(void* data, size_t bytes, int source, uint32_t tag, int* from) {
  if (source != -1) impl_->messages.check_peer("recv", source);
  size_t length = 0;
  impl_->message(impl_->receiver, [&](bool patient) {
    length = impl_->messages.receive(data, bytes, source, tag, from, patient);
  });
  return length;
}

std::unique_ptr<Plan> Group::plan_all_reduce(const Region& region, size_t offset, size_t count,
                                             DType dtype, ReduceOp op) {
  std::unique_ptr<Plan> plan;
  impl_->collective([&](bool) {
    plan = make_plan(*impl_, Op::plan_all_reduce, region, offset, count, dtype, op);
  });
  return plan;
}

std::unique_ptr<Plan> Group::plan_reduce_scatter(const Region& region, size_t offset, size_t count,
                                                 DType dtype, ReduceOp op) {
  std::unique_ptr<Plan> plan;
  impl_->collective([&](bool) {
    plan = make_plan(*impl_, Op::plan_reduce_scatter, region, offset, count, dtype, op);
  });
  return plan;
}

std::unique_ptr<Plan> Group::plan_all_gather(const Region& region, size_t offset, size_t bytes) {
  std::unique_ptr<Plan> plan;
  impl_->collective([&](bool) {
    plan = make_plan(*impl_, Op::plan_all_gather, region, offset, bytes, DType::u8, ReduceOp::sum);
  });
  return plan;
}

std::shared_ptr<Work> Group::submit(std::function<void()> fn) {
  return impl_->worker.submit(std::move(fn));
}

std::shared_ptr<Work> Group::isend(const void* data, size_t bytes, int to, uint32_t tag) {
  Impl* g = impl_.get();
  g->messages.check_peer("isend", to);
  return g->sender.submit(
      [=] { g->guarded([=] { g->messages.send(data, bytes, to, tag, true); }); });
}

std::shared_ptr<Work> Group::irecv(void* data, size_t bytes, int source, uint32_t tag) {
  Impl* g = impl_.get();
  if (source != -1) g->messages.check_peer("irecv", source);
  return g->receiver.submit(
      [=] { g->guarded([=] { g->messages.receive(data, bytes, source, tag, nullptr, true); }); });
}

}  // namespace eager::comm
