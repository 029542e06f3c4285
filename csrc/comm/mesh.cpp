#include "mesh.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>

#include "frame.h"
#include "mesh_impl.h"
#include "tcp.h"

namespace eager::comm {
namespace {

constexpr Duration kSlice = std::chrono::milliseconds(100);  // of a sleep, between two looks around
constexpr Duration kLongest = std::chrono::hours(24 * 365);
constexpr uint32_t kSelfKey = 0x666c6573;  // "self"

MeshOptions checked(const MeshOptions& o) {
  if (o.size < 1 || o.size > 65536 || o.rank < 0 || o.rank >= o.size)
    fail(ErrorKind::invalid, "join", "no such rank", "0 <= rank < size <= 65536",
         "rank " + std::to_string(o.rank) + " of " + std::to_string(o.size));
  if (o.heartbeat < std::chrono::milliseconds(20))
    fail(ErrorKind::invalid, "join", "the heartbeat is too short", "at least 20 ms");
  if (o.tcp_sockets < 1 || o.tcp_sockets > kTcpSockets)
    fail(ErrorKind::invalid, "join", "tcp_sockets is out of range",
         "1 to " + std::to_string(kTcpSockets), std::to_string(o.tcp_sockets));
  if (o.timeout <= Duration(0) || o.spin < Duration(0))
    fail(ErrorKind::invalid, "join", "a duration is not positive");
  MeshOptions out = o;  // so that no deadline overflows
  out.timeout = std::min<Duration>(o.timeout, kLongest);
  out.heartbeat = std::min<Duration>(o.heartbeat, kLongest);
  return out;
}

int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return CPU_SETSIZE;  // more than the set holds
  return CPU_COUNT(&set);
}

bool reached(uint32_t value, uint32_t wanted) { return static_cast<int32_t>(value - wanted) >= 0; }

}  // namespace

Mesh::Impl::Impl(const MeshOptions& o, Store& store, Stats& s)
    : options(checked(o)),
      stats(s),
      counter_memory(make_segment(static_cast<size_t>(o.size) * sizeof(Counters), false)),
      counters(reinterpret_cast<Counters*>(counter_memory.mapping.base())),
      liveness(o.rank, o.size, o.heartbeat),
      tickets(std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(o.size))),
      departing(static_cast<size_t>(o.size)) {
  if (options.size > 1) {
    peers =
        bootstrap(options, store, counter_memory, [this](int p) { return counters + p; }, &stats);
  } else {
    peers.resize(1);
  }
  at(options.rank).transport = "self";
  at(options.rank).reason = "this rank";
  for (int r = 0; r < options.size; ++r) hosts.push_back(number_hosts(r));
  const auto here = std::count(hosts.begin(), hosts.end(), hosts[static_cast<size_t>(o.rank)]);
  crowded = here > processors();
  for (int p = 0; p < options.size; ++p)
    if (at(p).link && !at(p).link->passive()) active.push_back(p);
  if (options.size > 1) start();
}

Mesh::Impl::~Impl() {
  leave();
  for (Neighbour& n : peers) n.link.reset();  // they may still send from regions
}

// The number of rank r's host; those of lower ranks are there already.
int Mesh::Impl::number_hosts(int r) const {
  int next = 0;
  for (int q = 0; q < r; ++q) {
    if (peers[static_cast<size_t>(q)].host == peers[static_cast<size_t>(r)].host)
      return hosts[static_cast<size_t>(q)];
    next = std::max(next, hosts[static_cast<size_t>(q)] + 1);
  }
  return next;
}

void Mesh::Impl::check_peer(const char* op, int peer) const {
  if (peer < 0 || peer >= options.size)
    fail(ErrorKind::invalid, op, "no such rank", "0 to " + std::to_string(options.size - 1),
         std::to_string(peer));
  if (guard.forked())
    fail(ErrorKind::invalid, op, "this process was forked from the one that joined the mesh", "",
         "", "join the mesh after the fork, in the process that uses it");
  if (left.load(std::memory_order_relaxed)) fail(ErrorKind::invalid, op, "this rank has left");
}

Counter& Mesh::Impl::counter(int peer, uint32_t slot) const {
  if (slot >= kCounters)
    fail(ErrorKind::invalid, "counter", "no such counter", "below " + std::to_string(kCounters),
         std::to_string(slot));
  return counters[peer].at[slot];
}

const Region& Mesh::Impl::add(std::unique_ptr<OwnedRegion> region) {
  const std::lock_guard<std::mutex> lock(regions_mutex);
  // Peers get their own descriptors; this one would only use up the process's.
  const Fd descriptor = std::move(region->segment.fd);
  const OwnedRegion& r = registry.add(std::move(region));
  try {
    for (int p = 0; p < options.size; ++p) {
      if (!at(p).link) continue;
      at(p).link->attach(r);
      if (descriptor && at(p).regions)
        tell(p, Message::region, Writer().u32(r.id).u64(r.length).take(), descriptor.get());
    }
  } catch (...) {
    registry.remove(r);
    throw;
  }
  return r;
}

void Mesh::Impl::give_up(uint32_t group, const Error& e) {
  if (!liveness.give_up(group)) return;  // the peers know
  const std::string payload = encode_failure({group, e.peer, reason_of(e)});
  for (int p = 0; p < options.size; ++p)
    if (at(p).control && liveness.alive(p)) tell(p, Message::failed, payload);
}

// Waits until done(): spins, then sleeps by slices, with an eye on the peers and the deadline.
void Mesh::Impl::wait(const int* peers, size_t n, const Waiting& w,
                      const std::function<bool()>& done,
                      const std::function<void(Duration)>& sleep) {
  const auto since = Clock::now();
  const auto spin_end = since + (w.patient ? options.spin / 10 : options.spin);
  if (!active.empty()) spinning.fetch_add(1, std::memory_order_seq_cst);
  bool over = false;
  for (unsigned i = 1; !over; ++i) {
    if ((over = done())) break;
    spin_pause();
    if (i % 16 != 0) continue;
    if (!active.empty()) progress_links();
    if (crowded) sched_yield();
    if (Clock::now() > spin_end) break;
  }
  if (!active.empty()) spinning.fetch_sub(1, std::memory_order_seq_cst);
  if (over) return;  // the I/O thread takes the links back a little later: more waits may follow
  if (!active.empty() && !watching.load(std::memory_order_seq_cst)) kick();

  stats.sleeps.fetch_add(1, std::memory_order_relaxed);
  std::optional<Liveness::Listed> listed;  // a wait for any of several says nothing about one
  if (n == 1) listed.emplace(liveness, peers[0], w, since);
  auto polled = since;
  try {
    while (!done()) {
      liveness.check(peers, n, w);
      const auto now = Clock::now();
      if (options.poll && now - polled >= kSlice) {
        options.poll();
        polled = now;
      }
      if (now >= w.deadline)
        liveness.overdue(peers, n, w, since, [this](int p, uint64_t question) {
          tell(p, Message::ask, Writer().u64(question).take());
        });
      sleep(std::min<Duration>(kSlice, w.deadline - now));
    }
  } catch (const Error& e) {
    if (done()) return;  // it came after all
    give_up(w.group, e);
    throw;
  } catch (...) {  // out of poll()
    const std::string rank = "rank " + std::to_string(options.rank);
    give_up(w.group,
            Error(ErrorKind::peer_lost, rank + " is lost: it was interrupted", options.rank));
    throw;
  }
}

// ---- Mesh

Mesh::Mesh(const MeshOptions& options, Store& store)
    : impl_(std::make_unique<Impl>(options, store, stats_)) {}

Mesh::~Mesh() {
  // A forked child has neither the thread nor the right to speak for its parent.
  if (impl_->guard.forked()) static_cast<void>(impl_.release());
}

void Mesh::leave() {
  if (impl_->guard.forked()) return;
  impl_->left.store(true, std::memory_order_relaxed);
  impl_->leave();
}

int Mesh::rank() const { return impl_->options.rank; }
int Mesh::size() const { return impl_->options.size; }
Duration Mesh::timeout() const { return impl_->options.timeout; }

int Mesh::host(int rank) const {
  impl_->check_peer("host", rank);
  return impl_->hosts[static_cast<size_t>(rank)];
}

const char* Mesh::transport(int peer) const {
  impl_->check_peer("transport", peer);
  return impl_->at(peer).transport.c_str();
}

std::string Mesh::reason(int peer) const {
  impl_->check_peer("reason", peer);
  return impl_->at(peer).reason;
}

const Region& Mesh::allocate(size_t length) {
  impl_->check_peer("allocate", rank());
  auto region = std::make_unique<OwnedRegion>();
  region->segment = make_segment(std::max<size_t>(length, 1), true);
  region->base = region->segment.mapping.base();
  region->length = std::max<size_t>(length, 1);
  return impl_->add(std::move(region));
}

const Region& Mesh::adopt(void* base, size_t length, bool device, int dmabuf) {
  impl_->check_peer("adopt", rank());
  if (!base || length == 0 || length > UINTPTR_MAX - reinterpret_cast<uintptr_t>(base))
    fail(ErrorKind::invalid, "adopt", "this is no memory", "", std::to_string(length) + " bytes");
  auto region = std::make_unique<OwnedRegion>();
  region->base = static_cast<std::byte*>(base);
  region->length = length;
  region->device = device;
  region->dmabuf = dmabuf;
  return impl_->add(std::move(region));
}

void Mesh::release(const Region& r) {
  Impl& m = *impl_;
  if (m.guard.forked()) return;  // the memory is the parent's
  const std::lock_guard<std::mutex> lock(m.regions_mutex);
  const std::unique_ptr<OwnedRegion> region = m.registry.remove(r);
  for (int p = 0; p < size(); ++p) {
    if (!m.at(p).link) continue;
    m.at(p).link->detach(*region);
    if (region->shared() && m.at(p).regions)
      m.tell(p, Message::withdraw, Writer().u32(region->id).take());
  }
}

const Region* Mesh::find(const void* data, size_t length) const {
  return impl_->registry.find(data, length);
}

Key Mesh::key(const Region& region, int peer) {
  Impl& m = *impl_;
  m.check_peer("key", peer);
  const OwnedRegion& r = m.registry.get(region);
  if (m.at(peer).link) {
    if (m.at(peer).link->passive() && !r.shared())
      fail(ErrorKind::invalid, "key",
           "rank " + std::to_string(peer) + " cannot map memory that was not allocated here", "",
           "", "copy through a region of allocate()");
    return m.at(peer).link->key(r);
  }
  Writer w;
  w.u32(kSelfKey).u32(r.id).u64(r.length).u64(reinterpret_cast<uintptr_t>(r.base));
  Key key{};
  std::memcpy(key.data(), w.bytes().data(), w.bytes().size());
  return key;
}

Target Mesh::import(int peer, const Key& key) {
  Impl& m = *impl_;
  m.check_peer("import", peer);
  Target t;
  if (m.at(peer).link) {
    m.liveness.check_import(peer);
    t = m.at(peer).link->import(key);
  } else {
    Reader r(key.data(), key.size());
    const uint32_t tag = r.u32();
    Region region;
    region.id = r.u32();
    region.length = r.u64();
    region.base = reinterpret_cast<std::byte*>(static_cast<uintptr_t>(r.u64()));
    if (tag != kSelfKey || m.registry.get(region).length != region.length)
      fail(ErrorKind::protocol, "import", "this is no key of this rank");
    t.region = region.id;
    t.length = region.length;
    t.mapped = region.base;
  }
  t.peer = peer;
  return t;
}

uint64_t Mesh::put(const Target& target, size_t offset, const Piece* pieces, int n,
                   uint32_t counter) {
  Impl& m = *impl_;
  const int peer = target.peer;
  m.check_peer("put", peer);
  size_t total = 0;
  bool fits = n >= 0 && offset <= target.length;
  for (int i = 0; fits && i < n; ++i) {
    fits = pieces[i].length <= target.length - offset - total;
    total += fits ? pieces[i].length : 0;
  }
  if (!fits)
    fail(ErrorKind::invalid, "put", "the range is not within the target",
         std::to_string(target.length) + " bytes", "offset " + std::to_string(offset));
  if (counter != kNoCounter && counter >= kCounters)
    fail(ErrorKind::invalid, "put", "no such counter", "below " + std::to_string(kCounters),
         std::to_string(counter));
  // Who has left needs no notice any more, such as that its chunk was read.
  if (total == 0 && m.liveness.has_left(peer)) return 0;
  m.liveness.check_put(peer);
  m.stats.puts.fetch_add(1, std::memory_order_relaxed);
  m.stats.put_bytes.fetch_add(total, std::memory_order_relaxed);
  if (Link* link = m.at(peer).link.get()) {
    uint64_t ticket = 0;
    try {
      ticket = link->put(target, offset, pieces, n, counter);
    } catch (const Error& e) {
      if (e.kind != ErrorKind::peer_lost) throw;
      m.link_failed(peer, e);
      m.await_settled(peer);
      if (total == 0 && m.liveness.has_left(peer)) return 0;
      m.liveness.check_put(peer);
      throw;
    }
    std::atomic<uint64_t>& last = m.tickets[static_cast<size_t>(peer)];
    uint64_t before = last.load(std::memory_order_relaxed);
    while (before < ticket &&
           !last.compare_exchange_weak(before, ticket, std::memory_order_relaxed)) {
    }
    return ticket;
  }
  std::byte* out = target.mapped + offset;
  for (int i = 0; i < n; ++i) {
    if (pieces[i].length > 0) std::memmove(out, pieces[i].data, pieces[i].length);
    out += pieces[i].length;
  }
  if (counter != kNoCounter) advance(m.counter(peer, counter));
  return 0;
}

void Mesh::signal(int peer, uint32_t counter) {
  Target nowhere;
  nowhere.peer = peer;
  put(nowhere, 0, nullptr, 0, counter);
}

void Mesh::sent(int peer, uint64_t ticket, const Waiting& w) {
  Impl& m = *impl_;
  m.check_peer("sent", peer);
  Link* link = m.at(peer).link.get();
  if (!link || link->is_sent(ticket)) return;
  m.wait(
      &peer, 1, w,
      [&] {
        m.progress_links();
        return link->is_sent(ticket);
      },
      [&](Duration limit) {
        if (!link->arm()) return;
        std::vector<pollfd> polls;
        for (const int fd : link->descriptors()) polls.push_back({fd, POLLIN, 0});
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
        poll(polls.data(), polls.size(), static_cast<int>(std::clamp<int64_t>(ms, 0, 1)));
      });
}

uint32_t Mesh::arrived(int peer, uint32_t counter) const {
  impl_->check_peer("arrived", peer);
  return impl_->counter(peer, counter).value.load(std::memory_order_acquire);
}

void Mesh::wait(int peer, uint32_t counter, uint32_t value, const Waiting& w) {
  Impl& m = *impl_;
  m.check_peer(w.op, peer);
  Counter& c = m.counter(peer, counter);
  if (reached(c.value.load(std::memory_order_acquire), value)) return;
  m.wait(
      &peer, 1, w, [&] { return reached(c.value.load(std::memory_order_acquire), value); },
      [&](Duration limit) {
        const uint32_t seen = c.value.load(std::memory_order_acquire);
        if (!reached(seen, value)) sleep_on(c, seen, limit);
      });
}

void Mesh::wait_until(const int* peers, size_t n, const Waiting& w,
                      const std::function<bool()>& done) {
  for (size_t i = 0; i < n; ++i) impl_->check_peer(w.op, peers[i]);
  if (done()) return;
  // Several counters: there is no futex for all of them.
  impl_->wait(peers, n, w, done, [](Duration limit) {
    std::this_thread::sleep_for(std::min<Duration>(limit, std::chrono::microseconds(50)));
  });
}

void Mesh::give_up(uint32_t group, const Error& e) {
  Impl& m = *impl_;
  if (!m.guard.forked() && !m.left.load(std::memory_order_relaxed)) m.give_up(group, e);
}

bool Mesh::failed(uint32_t group) const { return impl_->liveness.failed(group); }

int Mesh::lost(std::string* why) const { return impl_->liveness.lost(why); }

}  // namespace eager::comm
