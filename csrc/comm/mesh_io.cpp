// The mesh's I/O thread: control connections, heartbeats, and links while nobody waits.
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "frame.h"
#include "mesh_impl.h"

namespace eager::comm {
namespace {

constexpr uint32_t kEventTag = UINT32_MAX, kLinksTag = UINT32_MAX - 1;
constexpr uint32_t kProcessTag = uint32_t(1) << 30;  // and the rank; other tags are ranks
constexpr Duration kDrain =
    std::chrono::milliseconds(500);                   // for what a leaver still had in flight
constexpr Duration kFlush = std::chrono::seconds(5);  // for own puts before leaving

void watch(const Fd& epoll, int op, int fd, uint32_t events, uint32_t tag) {
  epoll_event e{};
  e.events = events;
  e.data.u32 = tag;
  if (epoll_ctl(epoll.get(), op, fd, &e) != 0) fail_errno("join", "epoll", errno);
}

Duration beat(const MeshOptions& o) {
  return std::clamp<Duration>(o.heartbeat / 4, std::chrono::milliseconds(5),
                              std::chrono::seconds(1));
}

}  // namespace

void Mesh::Impl::start() {
  epoll = Fd(epoll_create1(EPOLL_CLOEXEC));
  link_epoll = Fd(epoll_create1(EPOLL_CLOEXEC));
  event = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll || !link_epoll || !event) fail_errno("join", "epoll", errno);
  watch(epoll, EPOLL_CTL_ADD, event.get(), EPOLLIN, kEventTag);
  for (int p = 0; p < options.size; ++p) {
    if (at(p).control) {
      watch(epoll, EPOLL_CTL_ADD, at(p).control->fd(), EPOLLIN, static_cast<uint32_t>(p));
      watch_process(p);
    }
  }
  for (const int p : active)
    for (const int fd : at(p).link->descriptors()) watch(link_epoll, EPOLL_CTL_ADD, fd, EPOLLIN, 0);
  watch(epoll, EPOLL_CTL_ADD, link_epoll.get(), 0, kLinksTag);
  liveness.pardon();
  sigset_t all, before;  // signals are for the threads of the program
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread = std::thread([this] { run(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread.native_handle(), "eager-comm");
}

void Mesh::Impl::kick() {
  const uint64_t one = 1;
  static_cast<void>(!write(event.get(), &one, sizeof one));
}

void Mesh::Impl::tell(int peer, Message type, const std::string& payload, int fd) {
  if (!at(peer).control->send(type, payload, fd)) kick();
}

void Mesh::Impl::progress_links() {
  for (const int p : active) {
    if (!liveness.alive(p) && !liveness.departed(p)) continue;
    try {
      at(p).link->progress();
    } catch (const Error& e) {
      link_failed(p, e);
    }
  }
}

bool Mesh::Impl::arm_links() {
  bool idle = true;
  for (const int p : active) {
    if (!liveness.alive(p)) continue;
    try {
      idle = at(p).link->arm() && idle;
    } catch (const Error& e) {
      link_failed(p, e);
    }
  }
  return idle;
}

void Mesh::Impl::wake_waiters(int peer) {
  for (Counter& c : counters[peer].at)
    if (c.sleepers.load(std::memory_order_seq_cst) != 0) wake(c);
}

// What ended stays readable, and would wake the I/O thread for ever.
void Mesh::Impl::unwatch_link(int peer) {
  for (const int fd : at(peer).link->descriptors())
    epoll_ctl(link_epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void Mesh::Impl::gone(int peer) {
  liveness.gone(peer);
  unwatch_link(peer);
  wake_waiters(peer);
}

void Mesh::Impl::lose(int peer, const std::string& why) {
  if (!liveness.lose(peer, why)) return;
  unwatch_link(peer);
  at(peer).link->abandon();
  at(peer).control->close();
  wake_waiters(peer);
}

void Mesh::Impl::read_control(int peer) {
  Control& control = *at(peer).control;
  try {
    bool any = false;
    while (std::optional<Incoming> in = control.receive()) {
      any = true;
      handle(peer, std::move(*in));
    }
    if (any) liveness.heard(peer);
    return;
  } catch (const Error& e) {
    lose(peer, e.kind == ErrorKind::peer_lost ? "its process ended or was cut off" : reason_of(e));
  } catch (const std::exception& e) {
    lose(peer, e.what());
  }
  control.close();
  epoll_ctl(epoll.get(), EPOLL_CTL_DEL, control.fd(), nullptr);
}

// A child that a peer forked may keep its sockets open: the end of the process itself tells more.
void Mesh::Impl::watch_process(int peer) {
  ucred who{};
  socklen_t length = sizeof who;
  if (!at(peer).control->local() ||
      getsockopt(at(peer).control->fd(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 ||
      who.pid <= 0 || who.pid == getpid())
    return;
  Fd process(static_cast<int>(syscall(SYS_pidfd_open, who.pid, 0)));
  if (!process) return;  // an old kernel, or it has ended: the connection and its silence tell
  watch(epoll, EPOLL_CTL_ADD, process.get(), EPOLLIN, kProcessTag | static_cast<uint32_t>(peer));
  processes.emplace(peer, std::move(process));
}

void Mesh::Impl::handle(int peer, Incoming in) {
  if (handle_region(in, at(peer).regions.get())) return;
  switch (in.type) {
    case Message::heartbeat: {
      uint64_t answer;
      auto waits = decode_heartbeat(in.payload, options.size, &answer);
      liveness.heartbeat(peer, answer, std::move(waits));
      return;
    }
    case Message::ask: {
      Reader r(in.payload);
      const uint64_t question = r.u64();
      r.end();
      tell(peer, Message::heartbeat, encode_heartbeat(question, liveness.waits()));
      return;
    }
    case Message::failed: {
      Failure f = decode_failure(in.payload, options.size);
      if (f.group == kEveryGroup && f.because == options.rank) {
        lose(peer, "it takes this rank for lost: " + f.why);
        return;
      }
      liveness.failed(peer, std::move(f));
      wake_waiters(peer);
      return;
    }
    case Message::goodbye:
      liveness.left(peer);
      if (at(peer).link->passive()) {
        gone(peer);
      } else {
        departing[static_cast<size_t>(peer)] = Clock::now();
        ++departures;
      }
      return;
    default:
      fail(ErrorKind::protocol, "control", "a message of the bootstrap came late");
  }
}

void Mesh::Impl::link_failed(int peer, const Error& e) {
  if (e.kind != ErrorKind::peer_lost) return lose(peer, reason_of(e));
  const std::lock_guard<std::mutex> lock(ended_mutex);
  if (ended.emplace(peer, Ended{reason_of(e), Clock::now()}).second) kick();
}

// A goodbye may come a little later than the end of a link.
bool Mesh::Impl::settle_ended() {
  std::map<int, Ended> now;
  {
    const std::lock_guard<std::mutex> lock(ended_mutex);
    now = ended;
  }
  bool some = false;
  for (const auto& [p, end] : now) {
    if (liveness.alive(p)) read_control(p);
    if (liveness.departed(p)) {
      gone(p);
    } else if (liveness.alive(p)) {
      if (Clock::now() - end.when < kDrain) {
        some = true;
        continue;
      }
      lose(p, end.why);
    }
    const std::lock_guard<std::mutex> lock(ended_mutex);
    ended.erase(p);
  }
  return some;
}

void Mesh::Impl::await_settled(int peer) {
  const Deadline limit = Clock::now() + 4 * kDrain;  // the I/O thread may be starved
  while (liveness.alive(peer) && Clock::now() < limit)
    std::this_thread::sleep_for(std::chrono::microseconds(100));
}

// Reads what ranks that left had sent before.
void Mesh::Impl::drain_departed() {
  progress_links();
  int left = 0;
  for (const int p : active) {
    if (!liveness.departed(p)) continue;
    if (Clock::now() - departing[static_cast<size_t>(p)] > kDrain) {
      gone(p);
    } else {
      ++left;
    }
  }
  departures = left;
}

void Mesh::Impl::tick() {
  const auto now = Clock::now();
  // This process itself stood still (stopped, or starved): that others were not heard says nothing.
  const bool late = now - last_tick > beat(options) + options.heartbeat / 2;
  last_tick = now;
  next_tick = now + beat(options);
  const std::string payload = encode_heartbeat(0, liveness.waits());
  for (int p = 0; p < options.size; ++p)
    if (at(p).control && liveness.alive(p)) tell(p, Message::heartbeat, payload);
  if (late) {
    liveness.pardon();
    return;
  }
  for (const int p : liveness.silent()) read_control(p);  // it may have been heard meanwhile
  for (const int p : liveness.silent()) {
    const std::string why =
        "nothing was heard from it for " +
        std::to_string(
            std::chrono::duration_cast<std::chrono::milliseconds>(options.heartbeat).count()) +
        " ms: it hangs or is cut off";
    tell(p, Message::failed, encode_failure({kEveryGroup, p, why}));
    lose(p, why);
  }
}

void Mesh::Impl::run() {
  next_tick = last_tick = Clock::now();
  for (int p = 0; p < options.size; ++p)
    if (at(p).control) read_control(p);  // what came with the last message of the bootstrap
  std::vector<uint32_t> wanted(peers.size(), EPOLLIN);
  bool rewatch = !active.empty();
  while (!stop.load(std::memory_order_acquire)) {
    if (Clock::now() >= next_tick) tick();
    if (departures > 0) drain_departed();
    const bool unsettled = settle_ended();
    if (rewatch && spinning.load(std::memory_order_seq_cst) == 0) {
      progress_links();
      if (arm_links()) {
        watching.store(true, std::memory_order_seq_cst);
        watch(epoll, EPOLL_CTL_MOD, link_epoll.get(), EPOLLIN | EPOLLONESHOT, kLinksTag);
        rewatch = false;
      }
    }
    for (int p = 0; p < options.size; ++p) {
      if (!at(p).control || (!liveness.alive(p) && !liveness.departed(p))) continue;
      const uint32_t events = EPOLLIN | (at(p).control->flush() ? 0u : EPOLLOUT);
      if (events == wanted[static_cast<size_t>(p)]) continue;
      wanted[static_cast<size_t>(p)] = events;
      epoll_event e{};
      e.events = events;
      e.data.u32 = static_cast<uint32_t>(p);
      epoll_ctl(epoll.get(), EPOLL_CTL_MOD, at(p).control->fd(), &e);
    }
    Duration pause = std::max<Duration>(next_tick - Clock::now(), Duration(0));
    if (rewatch || unsettled || departures > 0)
      pause = std::min<Duration>(pause, std::chrono::milliseconds(1));
    epoll_event events[64];
    const int ms =
        static_cast<int>((pause + std::chrono::microseconds(999)) / std::chrono::milliseconds(1));
    const int n = epoll_wait(epoll.get(), events, 64, ms);
    for (int i = 0; i < n; ++i) {
      const uint32_t tag = events[i].data.u32;
      if (tag == kEventTag) {
        uint64_t count;
        static_cast<void>(!read(event.get(), &count, sizeof count));
      } else if (tag == kLinksTag) {
        watching.store(false, std::memory_order_seq_cst);
        rewatch = true;
      } else if (tag & kProcessTag) {
        const int p = static_cast<int>(tag & ~kProcessTag);
        read_control(p);  // its goodbye may be there
        lose(p, "its process ended");
        processes.erase(p);
      } else {
        read_control(static_cast<int>(tag));
      }
    }
  }
}

// Says goodbye, once what was put has left, so that peers do not take it for a death.
void Mesh::Impl::leave() {
  if (!thread.joinable()) return;
  const Deadline limit = Clock::now() + std::min<Duration>(kFlush, options.timeout);
  for (const int p : active) {
    const uint64_t last = tickets[static_cast<size_t>(p)].load(std::memory_order_relaxed);
    while (liveness.alive(p) && !at(p).link->is_sent(last) && Clock::now() < limit) {
      progress_links();
      std::this_thread::yield();
    }
  }
  stop.store(true, std::memory_order_release);
  kick();
  thread.join();
  for (Neighbour& n : peers)
    if (n.control) n.control->send(Message::goodbye);
  for (int p = 0; p < options.size; ++p) {
    if (!at(p).control || !liveness.alive(p)) continue;
    Control& c = *at(p).control;
    while (!c.flush() && Clock::now() < limit) wait_writable(c.fd(), limit);
    // Closing a TCP connection while something is unread throws away what is not acknowledged.
    int unacknowledged = 0;
    while (!c.local() && Clock::now() < limit && ioctl(c.fd(), SIOCOUTQ, &unacknowledged) == 0 &&
           unacknowledged > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace eager::comm
