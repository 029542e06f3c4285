#include "socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "error.h"

namespace eager::comm {
namespace {

std::string text(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// --- names ---------------------------------------------------------------------------------------

struct Resolved {
  int code = 0;
  int number = 0;  // errno, for EAI_SYSTEM
  std::vector<Address> addresses;
};

Resolved resolve_now(const std::string& host, uint16_t port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | flags;
  addrinfo* list = nullptr;
  Resolved result;
  result.code = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(),
                            &hints, &list);
  result.number = errno;
  if (result.code != 0) return result;
  for (const addrinfo* a = list; a; a = a->ai_next) {
    Address address;
    if (a->ai_addrlen > sizeof address.storage) continue;
    std::memcpy(&address.storage, a->ai_addr, a->ai_addrlen);
    address.length = a->ai_addrlen;
    result.addresses.push_back(address);
  }
  freeaddrinfo(list);
  return result;
}

// getaddrinfo has no deadline: names are looked up by a thread that may be left behind.
std::vector<Address> resolve(const char* op, const std::string& host, uint16_t port,
                             Deadline deadline, int flags = 0) {
  Resolved result = resolve_now(host, port, flags | AI_NUMERICHOST);
  if (result.code == EAI_NONAME && !host.empty()) {
    const auto late = [&] { fail(ErrorKind::timeout, op, host + " was not looked up in time"); };
    if (Clock::now() >= deadline) late();  // not a race with an answer that comes at once
    struct Lookup {
      std::mutex mutex;
      std::condition_variable ready;
      bool done = false;
      Resolved result;
    };
    auto lookup = std::make_shared<Lookup>();
    std::thread([lookup, host, port, flags] {
      Resolved found = resolve_now(host, port, flags);
      std::lock_guard<std::mutex> lock(lookup->mutex);
      lookup->result = std::move(found);
      lookup->done = true;
      lookup->ready.notify_all();
    }).detach();
    std::unique_lock<std::mutex> lock(lookup->mutex);
    if (!lookup->ready.wait_until(lock, deadline, [&] { return lookup->done; })) late();
    result = std::move(lookup->result);
  }
  if (result.code == EAI_SYSTEM) fail_errno(op, "cannot look up " + host, result.number);
  if (result.code != 0)
    fail(ErrorKind::system, op, "cannot look up " + host + ": " + gai_strerror(result.code));
  return std::move(result.addresses);
}

// --- system calls --------------------------------------------------------------------------------

Fd stream(const char* op, int family) {
  Fd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) fail_errno(op, "no socket", errno);
  return fd;
}

void set_option(int fd, int level, int name, int value) {
  (void)::setsockopt(fd, level, name, &value, sizeof value);  // all of them are only hints
}

// Small messages leave at once; a host that vanished is noticed within about two minutes.
void tune(int fd, int family) {
  if (family == AF_UNIX) return;
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
}

Address abstract_address(const char* op, const std::string& name) {
  Address address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (name.empty() || name.size() + 1 > sizeof un->sun_path)
    fail(ErrorKind::invalid, op, "not a name of a local socket",
         "1 to " + std::to_string(sizeof un->sun_path - 1) + " bytes",
         std::to_string(name.size()) + " bytes");
  un->sun_family = AF_UNIX;
  std::memcpy(un->sun_path + 1, name.data(), name.size());  // the zero before it: abstract
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

const sockaddr* raw(const Address& a) { return reinterpret_cast<const sockaddr*>(&a.storage); }

Address name_of(int fd, int (*call)(int, sockaddr*, socklen_t*)) {
  Address address;
  address.length = sizeof address.storage;
  if (call(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0)
    fail_errno("socket", "no address", errno);
  return address;
}

bool wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    const auto left = deadline - Clock::now();
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
    pollfd p{fd, events, 0};
    const int n = ::poll(&p, 1, static_cast<int>(std::clamp<int64_t>(ms, 0, 3600'000)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) fail_errno("poll", "cannot wait for a socket", errno);
    if (n == 0 && Clock::now() >= deadline) return false;
  }
}

// 0, or why it failed; ETIMEDOUT at the deadline.
int connect_to(int fd, const Address& address, Deadline deadline) {
  for (;;) {
    if (::connect(fd, raw(address), address.length) == 0) return 0;
    if (errno == EINPROGRESS || errno == EINTR) break;
    if (errno != EAGAIN) return errno;
    // A Unix socket whose queue is full gives no event to wait for.
    if (Clock::now() >= deadline) return ETIMEDOUT;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!wait_for(fd, POLLOUT, deadline)) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

// While nobody listens on a port of the ephemeral range, a socket may be given that port and
// connect to itself.
bool met_itself(int fd) {
  const Address here = name_of(fd, ::getsockname);
  sockaddr_storage there;
  socklen_t length = sizeof there;
  return ::getpeername(fd, reinterpret_cast<sockaddr*>(&there), &length) == 0 &&
         length == here.length && std::memcmp(&there, &here.storage, length) == 0;
}

[[noreturn]] void lost(const char* op, int number) {
  const std::string why = number == 0 ? "" : std::string(": ") + std::strerror(number);
  fail(ErrorKind::peer_lost, op, "the other side closed the connection" + why);
}

bool connection_ended(int number) {
  return number == ECONNRESET || number == EPIPE || number == ETIMEDOUT || number == EHOSTUNREACH ||
         number == ENETUNREACH;
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

// --- addresses -----------------------------------------------------------------------------------

bool Address::loopback() const {
  if (family() == AF_UNIX) return true;
  if (family() == AF_INET) {
    const auto* in = reinterpret_cast<const sockaddr_in*>(&storage);
    return ntohl(in->sin_addr.s_addr) >> 24 == 127;
  }
  if (family() == AF_INET6) {
    const in6_addr& a = reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(&a) || (IN6_IS_ADDR_V4MAPPED(&a) && a.s6_addr[12] == 127);
  }
  return false;
}

std::string Address::host() const {
  if (family() == AF_UNIX) {
    const auto* un = reinterpret_cast<const sockaddr_un*>(&storage);
    const size_t skip = offsetof(sockaddr_un, sun_path) + 1;
    return length <= skip ? "" : std::string(un->sun_path + 1, length - skip);
  }
  char name[NI_MAXHOST];
  if (::getnameinfo(raw(*this), length, name, sizeof name, nullptr, 0, NI_NUMERICHOST) != 0)
    return "?";
  return name;
}

uint16_t Address::port() const {
  if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
  if (family() == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  return 0;
}

std::string Address::text() const {
  return family() == AF_UNIX ? "unix:" + host() : comm::text(host(), port());
}

std::string address_towards(const std::string& host, uint16_t port) {
  const char* op = "address_towards";
  const auto addresses = resolve(op, host, port, Clock::now() + std::chrono::seconds(30));
  int error = EADDRNOTAVAIL;
  for (const Address& address : addresses) {
    // Connecting a datagram socket chooses a route and an address, and sends nothing.
    Fd fd(::socket(address.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (fd && ::connect(fd.get(), raw(address), address.length) == 0)
      return name_of(fd.get(), ::getsockname).host();
    error = errno;
  }
  fail_errno(op, "no way to " + text(host, port), error);
}

// --- waiting -------------------------------------------------------------------------------------

bool wait_readable(int fd, Deadline deadline) { return wait_for(fd, POLLIN, deadline); }
bool wait_writable(int fd, Deadline deadline) { return wait_for(fd, POLLOUT, deadline); }

// --- connections ---------------------------------------------------------------------------------

Socket Socket::connect(const std::string& host, uint16_t port, Deadline deadline) {
  const char* op = "connect";
  int error = EADDRNOTAVAIL;
  for (const Address& address : resolve(op, host, port, deadline)) {
    Fd fd = stream(op, address.family());
    error = connect_to(fd.get(), address, deadline);
    if (error == 0 && met_itself(fd.get())) error = ECONNREFUSED;
    if (error == 0) {
      tune(fd.get(), address.family());
      return Socket(std::move(fd));
    }
  }
  if (error == ETIMEDOUT) fail(ErrorKind::timeout, op, "no answer from " + text(host, port));
  fail_errno(op, "cannot connect to " + text(host, port), error);
}

Socket Socket::connect_local(const std::string& name, Deadline deadline) {
  const char* op = "connect";
  const Address address = abstract_address(op, name);
  Fd fd = stream(op, AF_UNIX);
  const int error = connect_to(fd.get(), address, deadline);
  if (error == ETIMEDOUT) fail(ErrorKind::timeout, op, "no answer from " + address.text());
  if (error != 0) fail_errno(op, "cannot connect to " + address.text(), error);
  return Socket(std::move(fd));
}

size_t Socket::try_write(const void* data, size_t length, const char* op) {
  for (;;) {
    const ssize_t n = ::send(fd(), data, length, MSG_NOSIGNAL);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    if (connection_ended(errno)) lost(op, errno);
    fail_errno(op, "cannot write to a socket", errno);
  }
}

size_t Socket::try_read(void* data, size_t length, const char* op) {
  if (length == 0) return 0;
  for (;;) {
    const ssize_t n = ::recv(fd(), data, length, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0) lost(op, 0);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    if (connection_ended(errno)) lost(op, errno);
    fail_errno(op, "cannot read from a socket", errno);
  }
}

void Socket::write(const void* data, size_t length, Deadline deadline, const char* op) {
  const auto* at = static_cast<const char*>(data);
  while (length > 0) {
    const size_t n = try_write(at, length, op);
    at += n, length -= n;
    if (n == 0 && !wait_writable(fd(), deadline))
      fail(ErrorKind::timeout, op, "the other side does not read");
  }
}

size_t Socket::read_some(void* data, size_t length, Deadline deadline, const char* op) {
  for (;;) {
    const size_t n = try_read(data, length, op);
    if (n > 0 || length == 0 || !wait_readable(fd(), deadline)) return n;
  }
}

void Socket::read(void* data, size_t length, Deadline deadline, const char* op) {
  auto* at = static_cast<char*>(data);
  while (length > 0) {
    const size_t n = read_some(at, length, deadline, op);
    if (n == 0) fail(ErrorKind::timeout, op, "no answer in time");
    at += n, length -= n;
  }
}

Address Socket::local() const { return name_of(fd(), ::getsockname); }
Address Socket::peer() const { return name_of(fd(), ::getpeername); }

bool Socket::loopback() const { return local().loopback() && peer().loopback(); }

// --- listening -----------------------------------------------------------------------------------

Listener Listener::tcp(const std::string& host, uint16_t port, int backlog) {
  const char* op = "listen";
  const auto deadline = Clock::now() + std::chrono::seconds(30);
  auto addresses = resolve(op, host, port, deadline, AI_PASSIVE);
  // A wildcard socket of IPv6 serves IPv4 too.
  if (host.empty())
    std::stable_sort(addresses.begin(), addresses.end(), [](const Address& a, const Address& b) {
      return a.family() == AF_INET6 && b.family() != AF_INET6;
    });
  int error = EADDRNOTAVAIL;
  for (const Address& address : addresses) {
    Fd fd(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd) {
      set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
      if (address.family() == AF_INET6) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    }
    if (fd && ::bind(fd.get(), raw(address), address.length) == 0 &&
        ::listen(fd.get(), backlog) == 0) {
      Listener listener;
      listener.address_ = name_of(fd.get(), ::getsockname);
      listener.fd_ = std::move(fd);
      return listener;
    }
    error = errno;
  }
  fail_errno(op, "cannot listen on " + text(host.empty() ? "*" : host, port), error);
}

Listener Listener::local(const std::string& name, int backlog) {
  const char* op = "listen";
  Listener listener;
  listener.address_ = abstract_address(op, name);
  listener.fd_ = stream(op, AF_UNIX);
  if (::bind(listener.fd(), raw(listener.address_), listener.address_.length) != 0 ||
      ::listen(listener.fd(), backlog) != 0)
    fail_errno(op, "cannot listen on " + listener.address_.text(), errno);
  return listener;
}

std::optional<Socket> Listener::try_accept() {
  for (;;) {
    Fd fd(::accept4(this->fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      tune(fd.get(), address_.family());
      return Socket(std::move(fd));
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return std::nullopt;
    // Linux passes on network errors of a connection that is gone already.
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO || errno == ENETDOWN ||
        errno == ENOPROTOOPT || errno == EHOSTDOWN || errno == ENONET || errno == EHOSTUNREACH ||
        errno == EOPNOTSUPP || errno == ENETUNREACH)
      continue;
    fail_errno("accept", "cannot accept a connection", errno);
  }
}

Socket Listener::accept(Deadline deadline) {
  for (;;) {
    if (auto socket = try_accept()) return std::move(*socket);
    if (!wait_readable(fd(), deadline))
      fail(ErrorKind::timeout, "accept", "nobody connected in time");
  }
}

}  // namespace eager::comm
