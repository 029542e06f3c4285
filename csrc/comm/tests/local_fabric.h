// A fabric that joins threads of one process through plain memory: every behaviour that the
// collectives must cope with, and a thread sanitizer sees all of it.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "comm/error.h"
#include "comm/fabric.h"
#include "comm/group.h"

namespace eager::test {

using namespace eager::comm;

struct LocalOptions {
  bool mapped = true;      // targets are mapped
  bool late = false;       // puts read their source late, unsignalled ones in any order
  int ranks_per_host = 0;  // 0: all on one host
};

class LocalFabric;

// What the ranks share.
class LocalWorld {
 public:
  explicit LocalWorld(int size, LocalOptions options = {});
  ~LocalWorld();
  Fabric& fabric(int rank);
  int size() const { return size_; }

  // For a member: all members of one call give the same name.
  Rendezvous exchange(const std::string& name, int members, int place);
  // Every rank learns that this one is gone.
  void lose(int rank);

  // Runs f(rank) in one thread per rank; rethrows what the lowest failing rank threw.
  void run(const std::function<void(int)>& f);
  // The same with a group of all ranks.
  void run_group(const std::function<void(Group&)>& f, const GroupOptions& options = {});

 private:
  friend class LocalFabric;
  struct Put {
    std::byte* to;
    std::vector<Piece> pieces;
    std::atomic<uint32_t>* counter;
  };
  struct Wire {  // of an ordered pair, when puts are late
    std::mutex mutex;
    std::deque<Put> puts;
    uint64_t issued = 0;
    std::atomic<uint64_t> delivered{0};
  };
  std::atomic<uint32_t>& counter(int at, int from, uint32_t index) {
    return counters_[(size_t(at) * size_t(size_) + size_t(from)) * kCounters + index];
  }
  Wire& wire(int from, int to) { return wires_[size_t(from) * size_t(size_) + size_t(to)]; }
  static void write(const Put&);
  void deliver();

  const int size_;
  const LocalOptions options_;
  std::vector<std::atomic<uint32_t>> counters_;
  std::vector<Wire> wires_;
  std::vector<std::unique_ptr<LocalFabric>> fabrics_;
  std::atomic<int> lost_{-1};
  std::atomic<bool> stop_{false};
  std::thread deliverer_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::vector<std::string>> blobs_;
  std::map<std::string, int> given_;
  int runs_ = 0;
};

class LocalFabric final : public Fabric {
 public:
  LocalFabric(LocalWorld& world, int rank) : world_(world), rank_(rank) {}
  ~LocalFabric() override {
    for (auto& [id, region] : regions_) std::free(region.base);
    for (std::byte* base : released_) std::free(base);
  }
  int rank() const override { return rank_; }
  int size() const override { return world_.size_; }
  int host(int rank) const override {
    return world_.options_.ranks_per_host ? rank / world_.options_.ranks_per_host : 0;
  }
  const char* transport(int) const override { return "local"; }
  std::string reason(int) const override { return "a test"; }

  const Region& allocate(size_t length) override {
    const std::lock_guard lock(mutex_);
    const size_t whole = (length + 4095) / 4096 * 4096;
    auto* base = static_cast<std::byte*>(std::aligned_alloc(4096, std::max<size_t>(whole, 4096)));
    std::fill(base, base + length, std::byte{0});
    const uint32_t id = ++last_id_;
    return regions_[id] = Region{id, base, length};
  }
  // The memory stays until the end, as a mapping does that a peer may still be writing to.
  void release(const Region& region) override {
    const std::lock_guard lock(mutex_);
    released_.push_back(region.base);
    regions_.erase(region.id);
  }
  const Region* find(const void* data, size_t length) const override {
    const std::lock_guard lock(mutex_);
    const auto* begin = static_cast<const std::byte*>(data);
    for (const auto& [id, region] : regions_) {
      if (begin >= region.base && begin + length <= region.base + region.length) return &region;
    }
    return nullptr;
  }
  size_t regions() const {
    const std::lock_guard lock(mutex_);
    return regions_.size();
  }

  struct LocalKey {
    int owner, reader;
    uint32_t region;
    size_t length;
    std::byte* base;
  };
  Key key(const Region& region, int peer) override {
    const LocalKey local{rank_, peer, region.id, region.length, region.base};
    Key key{};
    std::memcpy(key.data(), &local, sizeof local);
    return key;
  }
  Target import(int peer, const Key& key) override {
    LocalKey local;
    std::memcpy(&local, key.data(), sizeof local);
    if (local.owner != peer || local.reader != rank_) {
      fail(ErrorKind::protocol, "import", "a key of somebody else");
    }
    Target target;
    target.peer = peer;
    target.region = local.region;
    target.length = local.length;
    target.address = reinterpret_cast<uint64_t>(local.base);
    const bool mapped = world_.options_.mapped && host(peer) == host(rank_);
    target.mapped = mapped ? local.base : nullptr;
    return target;
  }

  uint64_t put(const Target& target, size_t offset, const Piece* pieces, int n,
               uint32_t counter) override {
    size_t length = 0;
    for (int i = 0; i < n; ++i) length += pieces[i].length;
    if (offset > target.length || length > target.length - offset) {
      fail(ErrorKind::invalid, "put", "outside the target");
    }
    stats_.puts += 1;
    stats_.put_bytes += length;
    std::byte* to = reinterpret_cast<std::byte*>(target.address) + offset;
    return send(target.peer, {to, {pieces, pieces + n}, at(target.peer, counter)});
  }
  void signal(int peer, uint32_t counter) override { send(peer, {nullptr, {}, at(peer, counter)}); }
  void sent(int peer, uint64_t ticket, const Waiting& waiting) override {
    LocalWorld::Wire& wire = world_.wire(rank_, peer);
    until([&] { return wire.delivered.load() >= ticket; }, peer, waiting);
  }
  uint32_t arrived(int peer, uint32_t counter) const override {
    return world_.counter(rank_, peer, counter).load(std::memory_order_acquire);
  }
  void wait(int peer, uint32_t counter, uint32_t value, const Waiting& waiting) override {
    until([&] { return int32_t(arrived(peer, counter) - value) >= 0; }, peer, waiting);
  }
  void wait_until(const int* peers, size_t n, const Waiting& waiting,
                  const std::function<bool()>& done) override {
    until(done, n > 0 ? peers[0] : -1, waiting);
  }
  int lost(std::string* why) const override {
    if (why && world_.lost_ >= 0) *why = "the test said so";
    return world_.lost_;
  }

 private:
  std::atomic<uint32_t>* at(int peer, uint32_t counter) {
    return counter == kNoCounter ? nullptr : &world_.counter(peer, rank_, counter);
  }
  uint64_t send(int peer, LocalWorld::Put put) {
    if (world_.lost_ == peer) fail(ErrorKind::peer_lost, "put", "peer lost", "", "", "", peer);
    if (!world_.options_.late) {
      LocalWorld::write(put);
      return 0;
    }
    LocalWorld::Wire& wire = world_.wire(rank_, peer);
    const std::lock_guard lock(wire.mutex);
    wire.puts.push_back(std::move(put));
    return ++wire.issued;
  }
  template <class F>
  void until(const F& done, int peer, const Waiting& waiting) {
    for (int spin = 0; !done(); ++spin) {
      if (world_.lost_ >= 0 && world_.lost_ != rank_) {
        fail(ErrorKind::peer_lost, waiting.op, "rank " + std::to_string(world_.lost_) + " is lost",
             "", "sequence " + std::to_string(waiting.sequence), "", world_.lost_);
      }
      if (spin % 64 == 63 && Clock::now() > waiting.deadline) {
        fail(ErrorKind::timeout, waiting.op, "rank " + std::to_string(peer) + " did not come");
      }
      if (spin < 200) continue;
      if (spin < 2000) {
        std::this_thread::yield();
      } else {
        stats_.sleeps += 1;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  LocalWorld& world_;
  const int rank_;
  mutable std::mutex mutex_;
  std::map<uint32_t, Region> regions_;
  std::vector<std::byte*> released_;
  uint32_t last_id_ = 0;
};

inline LocalWorld::LocalWorld(int size, LocalOptions options)
    : size_(size),
      options_(options),
      counters_(size_t(size) * size_t(size) * kCounters),
      wires_(size_t(size) * size_t(size)) {
  // Close to where 32 bits end: counters wrap around.
  for (auto& c : counters_) c = UINT32_MAX - 5;
  for (int r = 0; r < size; ++r) fabrics_.push_back(std::make_unique<LocalFabric>(*this, r));
  if (options.late) deliverer_ = std::thread([this] { deliver(); });
}

inline LocalWorld::~LocalWorld() {
  stop_ = true;
  if (deliverer_.joinable()) deliverer_.join();
}

inline Fabric& LocalWorld::fabric(int rank) { return *fabrics_[size_t(rank)]; }

inline void LocalWorld::write(const Put& put) {
  std::byte* to = put.to;
  for (const Piece& piece : put.pieces) {
    if (piece.length) std::memcpy(to, piece.data, piece.length);
    to += piece.length;
  }
  if (put.counter) put.counter->fetch_add(1, std::memory_order_release);
}

inline void LocalWorld::deliver() {
  std::mt19937 random(7);
  std::vector<size_t> order(wires_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  while (!stop_) {
    bool idle = true;
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t index : order) {
      Wire& wire = wires_[index];
      const std::lock_guard lock(wire.mutex);
      if (wire.puts.empty()) continue;
      idle = false;
      if (random() % 4 == 0) continue;  // later
      const auto signalled = [](const Put& p) { return p.counter != nullptr; };
      const auto end = std::find_if(wire.puts.begin(), wire.puts.end(), signalled);
      if (end == wire.puts.end()) continue;
      std::shuffle(wire.puts.begin(), end, random);
      const size_t count = size_t(end - wire.puts.begin()) + 1;
      for (size_t i = 0; i < count; ++i) {
        write(wire.puts.front());
        wire.puts.pop_front();
      }
      wire.delivered += count;
    }
    if (idle) std::this_thread::yield();
  }
}

inline Rendezvous LocalWorld::exchange(const std::string& name, int members, int place) {
  return [this, name, members, place](const std::string& mine) {
    std::unique_lock lock(mutex_);
    auto& blobs = blobs_[name];
    blobs.resize(size_t(members));
    blobs[size_t(place)] = mine;
    ++given_[name];
    changed_.notify_all();
    changed_.wait(lock, [&] { return given_[name] == members || lost_ >= 0; });
    return blobs;
  };
}

inline void LocalWorld::lose(int rank) {
  const std::lock_guard lock(mutex_);
  lost_ = rank;
  changed_.notify_all();
}

inline void LocalWorld::run(const std::function<void(int)>& f) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(size_));
  std::vector<std::thread> threads;
  for (int r = 0; r < size_; ++r) {
    threads.emplace_back([&, r] {
      try {
        f(r);
      } catch (...) {
        errors[size_t(r)] = std::current_exception();
        lose(r);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  // Others fail because one did; that one's error is told.
  if (lost_ >= 0 && errors[size_t(lost_.load())]) std::rethrow_exception(errors[size_t(lost_)]);
  for (const std::exception_ptr& e : errors) {
    if (e) std::rethrow_exception(e);
  }
}

inline void LocalWorld::run_group(const std::function<void(Group&)>& f,
                                  const GroupOptions& options) {
  const std::string name = "run " + std::to_string(++runs_);
  std::vector<int> ranks(static_cast<size_t>(size_));
  for (int r = 0; r < size_; ++r) ranks[size_t(r)] = r;
  run([&](int rank) {
    Group group(fabric(rank), ranks, 0, exchange(name, size_, rank), options);
    f(group);
    group.barrier();  // nobody goes while others still use its scratch
  });
}

}  // namespace eager::test
