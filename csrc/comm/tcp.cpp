#include "tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

constexpr int kRounds = 16;                 // reads of each socket by one progress()
constexpr uint32_t kKeyMagic = 0x4b504345;  // "ECPK"

// What a key holds; the rest of it is zero.
struct KeyFields {
  uint32_t magic, region;
  uint64_t length;
};

void set_option(int fd, int level, int option, int64_t value) {
  const int v = int(std::clamp<int64_t>(value, 1, INT32_MAX));
  (void)::setsockopt(fd, level, option, &v, sizeof v);  // refused: the defaults serve too
}

// A host that vanishes without a word is noticed within `timeout`, whether bytes are on their way
// to it or not.  (Mesh's heartbeats are quicker; this is for links that are used without.)
void set_timeouts(int fd, Duration timeout) {
  using namespace std::chrono;
  const int64_t seconds = duration_cast<std::chrono::seconds>(timeout).count();
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, duration_cast<milliseconds>(timeout).count());
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, std::min<int64_t>(seconds / 2, 60));
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, std::min<int64_t>(seconds / 8, 15));
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

// Within a host the sender is always quicker than the receiver: without a limit megabytes wait in
// the kernel and have left the cache when they are read (a third more time per byte).
void limit_queue(const Socket& socket) {
  if (socket.loopback()) set_option(socket.fd(), SOL_SOCKET, SO_SNDBUF, 512 << 10);
}

bool enable_zero_copy(const std::vector<Socket>& sockets, ZeroCopy choice) {
  if (choice == ZeroCopy::never) return false;
  const int on = 1;
  for (const Socket& s : sockets) {
    if (choice == ZeroCopy::automatic && s.loopback()) return false;
    if (::setsockopt(s.fd(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) != 0) return false;
  }
  return true;
}

std::vector<int> numbers(const std::vector<Socket>& sockets) {
  std::vector<int> fds;
  for (const Socket& s : sockets) fds.push_back(s.fd());
  return fds;
}

void wait_event(int epoll, int milliseconds) {
  pollfd p{epoll, POLLIN, 0};
  (void)::poll(&p, 1, milliseconds);
}

}  // namespace

TcpLink::TcpLink(const LinkOptions& options, const TcpTuning& tuning, std::vector<Socket> sockets)
    : options_(options),
      sockets_(std::move(sockets)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      watched_(sockets_.size(), EPOLLIN),
      unread_(sockets_.size()),
      receiver_(options.counters, options.peer, int(sockets_.size())),
      ended_(sockets_.size()),
      sender_(numbers(sockets_), options.peer, enable_zero_copy(sockets_, tuning.zero_copy),
              tuning.queue_bytes) {
  if (!epoll_) fail_errno("tcp", "no epoll", errno);
  for (size_t i = 0; i < sockets_.size(); ++i) {
    set_timeouts(sockets_[i].fd(), options_.timeout);
    limit_queue(sockets_[i]);
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, sockets_[i].fd(), &event) != 0)
      fail_errno("tcp", "cannot watch a socket", errno);
  }
}

TcpLink::~TcpLink() {
  try {
    const Deadline until = Clock::now() + std::chrono::seconds(1);
    while (!abandoned_ && sender_.pending() && Clock::now() < until) {
      wait_event(epoll_.get(), 1);
      progress();
    }
  } catch (const Error&) {
    return;  // nobody is there who could receive the rest
  }
  for (const Socket& s : sockets_) ::shutdown(s.fd(), SHUT_WR);
}

void TcpLink::attach(const Registered& region) {
  if (region.device) return;
  std::lock_guard lock(receive_mutex_);
  receiver_.attach(region);
}

void TcpLink::detach(const Registered& region) {
  std::lock_guard lock(receive_mutex_);
  receiver_.detach(region.id);
}

Key TcpLink::key(const Registered& region) {
  if (region.device)
    fail(ErrorKind::invalid, "tcp", "sockets cannot read into GPU memory", "memory of the host", "",
         "EAGER_COMM_TRANSPORT=verbs, or copy to the host first");
  const KeyFields fields{kKeyMagic, region.id, region.length};
  Key key{};
  std::memcpy(key.data(), &fields, sizeof fields);
  return key;
}

Target TcpLink::import(const Key& key) {
  KeyFields fields;
  std::memcpy(&fields, key.data(), sizeof fields);
  const bool padded = std::all_of(key.begin() + sizeof fields, key.end(),
                                  [](std::byte b) { return b == std::byte{}; });
  if (fields.magic != kKeyMagic || !padded || fields.length > PTRDIFF_MAX)
    fail(ErrorKind::protocol, "tcp",
         "rank " + std::to_string(options_.peer) + " sent what is no key of a tcp region");
  Target target;
  target.peer = options_.peer;
  target.region = fields.region;
  target.length = fields.length;
  return target;
}

uint64_t TcpLink::put(const Target& target, size_t offset, const Piece* pieces, int n,
                      uint32_t counter) {
  size_t left = offset <= target.length ? target.length - offset : 0, bytes = 0;
  for (int i = 0; i < n; ++i) {
    if (pieces[i].length > left || offset > target.length)
      fail(ErrorKind::invalid, "put", "the bytes do not fit the region",
           "at most " + std::to_string(target.length) + " bytes",
           "a piece of " + std::to_string(pieces[i].length) + " bytes at offset " +
               std::to_string(offset + bytes));
    left -= pieces[i].length;
    bytes += pieces[i].length;
  }
  if (counter >= kCounters && counter != kNoCounter)
    fail(ErrorKind::invalid, "put", "there is no such counter",
         "less than " + std::to_string(kCounters), std::to_string(counter));
  const Deadline deadline = Clock::now() + options_.timeout;
  for (;;) {
    const uint64_t ticket = sender_.put(target.region, offset, counter, pieces, n);
    watch();
    if (ticket) return ticket;
    // The peer may be stuck in a put just as long as nobody here receives.
    progress();
    if (Clock::now() > deadline)
      fail(ErrorKind::timeout, "put",
           "rank " + std::to_string(options_.peer) + " takes no bytes any more");
    wait_event(epoll_.get(), 1);
  }
}

void TcpLink::progress() {
  if (abandoned_) return;
  {
    std::unique_lock lock(receive_mutex_, std::try_to_lock);
    if (lock) receive();
  }
  if (sender_.pending()) sender_.pump();
  watch();
}

void TcpLink::receive() {
  if (refused_) lost("it sent what it must not");
  bool more = true;
  for (int round = 0; more && round < kRounds; ++round) {
    more = false;
    for (size_t i = 0; i < sockets_.size(); ++i) more |= receive_some(int(i));
  }
  for (size_t i = 0; i < sockets_.size(); ++i) unread_[i] = ended_[i] || receiver_.ahead(int(i));
  // What came before the end on other sockets still counts.
  const bool all = std::all_of(ended_.begin(), ended_.end(), [](bool e) { return e; });
  if (broken_.empty() && all) broken_ = "it closed the connection";
  if (!broken_.empty() && !more) lost(broken_);
}

// One read.  True when there may be more.
bool TcpLink::receive_some(int stream) {
  if (ended_[size_t(stream)]) return false;
  iovec to[2];
  ssize_t got = 0;
  try {
    const int n = receiver_.want(stream, to);
    if (!n) return false;
    got = ::readv(sockets_[size_t(stream)].fd(), to, n);
    if (got > 0) {
      receiver_.take(stream, size_t(got));
      return size_t(got) == to[0].iov_len + (n > 1 ? to[1].iov_len : 0);
    }
  } catch (const Error&) {
    refused_ = true;
    throw;
  }
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
  if (got < 0 && errno == EINTR) return true;
  end(stream, got < 0 ? errno : 0);
  return false;
}

// One of several sockets may end a little before the others when the peer leaves in order.
void TcpLink::end(int stream, int number) {
  ended_[size_t(stream)] = true;
  if (number)
    broken_ = std::string("the connection broke: ") + std::strerror(number);
  else if (!receiver_.between(stream))
    broken_ = "it closed the connection in the middle of a put";
}

// Keeps epoll informed of what the sockets are waited for.
void TcpLink::watch() {
  std::lock_guard lock(watch_mutex_);
  for (size_t i = 0; i < sockets_.size() && !abandoned_; ++i) {
    epoll_event event{};
    event.events = (unread_[i] ? 0u : EPOLLIN) | (sender_.blocked(int(i)) ? EPOLLOUT : 0u);
    if (event.events == watched_[i]) continue;
    watched_[i] = event.events;
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, sockets_[i].fd(), &event);
  }
}

void TcpLink::abandon() {
  {
    std::lock_guard lock(watch_mutex_);
    abandoned_ = true;
    for (const Socket& s : sockets_) {
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, s.fd(), nullptr);
      ::shutdown(s.fd(), SHUT_RDWR);
    }
  }
  sender_.stop();
}

void TcpLink::lost(const std::string& why) const {
  fail(ErrorKind::peer_lost, "tcp", "rank " + std::to_string(options_.peer) + " is lost: " + why,
       "", "", "", options_.peer);
}

}  // namespace eager::comm
