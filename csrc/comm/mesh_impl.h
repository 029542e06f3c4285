// The inside of a Mesh, shared by mesh.cpp (operations) and mesh_io.cpp (the I/O thread).
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap.h"
#include "liveness.h"
#include "mesh.h"
#include "registry.h"

namespace eager::comm {

struct Mesh::Impl {
  Impl(const MeshOptions&, Store&, Stats&);
  ~Impl();  // leaves the job; not in a forked child

  // ---- operations (mesh.cpp)
  void check_peer(const char* op, int peer) const;  // also that this is the process that made it
  Counter& counter(int peer, uint32_t slot) const;
  Neighbour& at(int peer) { return peers[static_cast<size_t>(peer)]; }
  const Region& add(std::unique_ptr<OwnedRegion>);
  void wait(const int* peers, size_t n, const Waiting&, const std::function<bool()>& done,
            const std::function<void(Duration)>& sleep);
  void give_up(uint32_t group, const Error&);
  int number_hosts(int rank) const;

  // ---- I/O (mesh_io.cpp)
  void start();
  void run();
  void kick();            // wakes the I/O thread
  void progress_links();  // of all that need it
  bool arm_links();       // false: there is something to do already
  void tell(int peer, Message, const std::string& payload, int fd = -1);
  void lose(int peer, const std::string& why);
  void unwatch_link(int peer);
  void gone(int peer);
  void wake_waiters(int peer);
  void read_control(int peer);
  void watch_process(int peer);
  void handle(int peer, Incoming);
  void tick();
  void drain_departed();
  void link_failed(int peer, const Error&);
  bool settle_ended();           // true: some are left
  void await_settled(int peer);  // until it is known whether it left, gave up or died
  void leave();

  const MeshOptions options;
  Stats& stats;
  const ForkGuard guard;
  Segment counter_memory;
  Counters* counters;  // one per peer
  Liveness liveness;
  std::vector<Neighbour> peers;
  std::vector<int> hosts;
  std::vector<int> active;  // peers whose links need progress
  bool crowded = false;     // more ranks on this host than processors: spinning takes them away
  std::unique_ptr<std::atomic<uint64_t>[]> tickets;  // the last one of each peer
  Registry registry;
  std::mutex regions_mutex;  // links see regions come and go one after another

  Fd epoll, link_epoll, event;
  std::map<int, Fd> processes;  // of peers on this host: readable when they end
  std::thread thread;
  std::atomic<bool> stop{false}, left{false};
  // While somebody spins, links' events are left to him: the I/O thread lets its watch of them
  // lapse, and takes it up again when the last one stops spinning.
  std::atomic<int> spinning{0};
  std::atomic<bool> watching{false};
  Clock::time_point next_tick, last_tick;
  // Links that ended.  Whether their peers left or died is for the control connection to say.
  struct Ended {
    std::string why;
    Clock::time_point when;
  };
  std::mutex ended_mutex;
  std::map<int, Ended> ended;
  std::vector<Clock::time_point> departing;  // when a peer's goodbye came; epoch: it did not
  int departures = 0;                        // whose links are still read
};

}  // namespace eager::comm
