// The server: one thread, epoll, sessions (store_session.h).
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <list>
#include <thread>

#include "error.h"
#include "store_session.h"

namespace eager::comm {
namespace {

constexpr uint64_t kStop = 0, kListener = 1, kFirstConnection = 2;
constexpr auto kPause = std::chrono::milliseconds(100);  // when descriptors have run out

struct Connection {
  Connection(Socket s, StoreTable& table, uint64_t id, const std::string& secret)
      : socket(std::move(s)), session(table, id, secret) {}
  Socket socket;
  StoreSession session;
  bool watches_output = false;
  Deadline handshake_ends;
  std::list<uint64_t>::iterator stranger;  // its place among them, until authenticated
  bool is_stranger = false;
};

}  // namespace

struct StoreServer::Impl {
  Impl(const std::string& host, uint16_t port, std::string secret, const StoreLimits& limits)
      : secret_(std::move(secret)), table_(limits), listener_(Listener::tcp(host, port)) {
    require_secret("store server", secret_, listener_.address());
    epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    stop_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!epoll_ || !stop_) fail_errno("store server", "no epoll", errno);
    control(EPOLL_CTL_ADD, stop_.get(), kStop, EPOLLIN);
    control(EPOLL_CTL_ADD, listener_.fd(), kListener, EPOLLIN);
    // Signals belong to the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread_ = std::thread([this] { serve(); });
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  ~Impl() {
    const uint64_t one = 1;
    while (::write(stop_.get(), &one, sizeof one) < 0 && errno == EINTR) {
    }
    thread_.join();
  }

  void control(int operation, int fd, uint64_t id, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = id;
    if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0)
      fail_errno("store server", "epoll_ctl", errno);
  }

  // Milliseconds until a stranger's time is over or the pause is; -1: neither.
  int patience() const {
    Deadline next = Deadline::max();
    if (!strangers_.empty()) next = connections_.at(strangers_.front())->handshake_ends;
    if (paused_) next = std::min(next, resume_);
    if (next == Deadline::max()) return -1;
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(ms, 0, 60'000));
  }

  void serve() {
    std::array<epoll_event, 256> events;
    for (;;) {
      const int n = ::epoll_wait(epoll_.get(), events.data(), events.size(), patience());
      for (int i = 0; i < n; ++i) {
        const uint64_t id = events[i].data.u64;
        if (id == kStop) return;
        if (id == kListener)
          welcome();
        else
          handle(id, events[i].events);
        for (const uint64_t other : table_.take_woken()) handle(other, 0);
      }
      const auto now = Clock::now();
      while (!strangers_.empty() && connections_.at(strangers_.front())->handshake_ends <= now)
        drop(strangers_.front());
      if (paused_ && resume_ <= now) {
        paused_ = false;
        control(EPOLL_CTL_MOD, listener_.fd(), kListener, EPOLLIN);
      }
    }
  }

  void welcome() {
    try {
      // A few at a time: those who are served already come first.
      for (int i = 0; i < 64; ++i) {
        auto socket = listener_.try_accept();
        if (!socket) return;
        if (connections_.size() >= table_.limits().connections) continue;  // closes it
        if (strangers_.size() >= table_.limits().strangers) drop(strangers_.front());
        admit(std::move(*socket));
      }
    } catch (const std::exception&) {  // no descriptors or no memory: wait until some are free
      paused_ = true;
      resume_ = Clock::now() + kPause;
      control(EPOLL_CTL_MOD, listener_.fd(), kListener, 0);
    }
  }

  void admit(Socket socket) {
    const uint64_t id = next_id_++;
    const int fd = socket.fd();
    auto connection = std::make_unique<Connection>(std::move(socket), table_, id, secret_);
    connection->handshake_ends = Clock::now() + table_.limits().handshake;
    control(EPOLL_CTL_ADD, fd, id, EPOLLIN);
    Connection& c = *connections_.emplace(id, std::move(connection)).first->second;
    c.stranger = strangers_.insert(strangers_.end(), id);
    c.is_stranger = true;
    handle(id, 0);
  }

  void drop(uint64_t id) {
    const auto it = connections_.find(id);
    if (it->second->is_stranger) strangers_.erase(it->second->stranger);
    connections_.erase(it);
  }

  // Whatever goes wrong here concerns this connection alone.
  void handle(uint64_t id, uint32_t events) {
    const auto it = connections_.find(id);
    if (it == connections_.end()) return;  // dropped earlier in this round
    Connection& c = *it->second;
    try {
      if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
      flush(c);
      if (!c.session.failed()) return;
    } catch (const std::exception&) {
    }
    drop(id);
  }

  void receive(Connection& c) {
    for (int i = 0; i < 16; ++i) {  // then it is somebody else's turn
      const size_t n =
          c.socket.try_read(buffer_.data(), std::min(buffer_.size(), c.session.wanted()));
      if (n == 0) return;
      c.session.take(buffer_.data(), n);
      if (c.is_stranger && c.session.authenticated()) {
        c.is_stranger = false;
        strangers_.erase(c.stranger);
      }
      if (c.session.failed()) return;
    }
  }

  void flush(Connection& c) {
    while (c.session.output_bytes() > 0) {
      std::array<iovec, 16> pieces;
      msghdr message{};
      message.msg_iov = pieces.data();
      message.msg_iovlen = static_cast<size_t>(c.session.output(pieces.data(), pieces.size()));
      const ssize_t n = ::sendmsg(c.socket.fd(), &message, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno != EAGAIN) fail_errno("store server", "cannot write", errno);
      if (n < 0) break;
      c.session.sent(static_cast<size_t>(n));
    }
    const bool pending = c.session.output_bytes() > 0;
    if (pending != c.watches_output) {
      control(EPOLL_CTL_MOD, c.socket.fd(), c.session.id(),
              EPOLLIN | (pending ? uint32_t(EPOLLOUT) : 0));
      c.watches_output = pending;
    }
  }

  const std::string secret_;
  StoreTable table_;  // before the connections, whose sessions refer to it
  Listener listener_;
  Fd epoll_, stop_;
  uint64_t next_id_ = kFirstConnection;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::list<uint64_t> strangers_;  // the oldest first
  bool paused_ = false;
  Deadline resume_;
  std::array<char, 65536> buffer_;
  std::thread thread_;
};

StoreServer::StoreServer(const std::string& host, uint16_t port, std::string secret,
                         StoreLimits limits)
    : impl_(std::make_unique<Impl>(host, port, std::move(secret), limits)) {}
StoreServer::~StoreServer() = default;
uint16_t StoreServer::port() const { return impl_->listener_.port(); }

}  // namespace eager::comm
