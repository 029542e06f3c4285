// Stream sockets with deadlines: TCP (IPv4, IPv6, names) and abstract Unix sockets.
//
// Descriptors are non-blocking and closed on exec; waiting is poll(2) until a deadline.
#pragma once
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "fabric.h"

namespace eager::comm {

// Owns a file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;

  int family() const { return storage.ss_family; }
  bool loopback() const;     // 127/8, ::1 (also v4-mapped), or a Unix socket
  std::string host() const;  // "10.0.0.1", "fe80::1%eth0"; of a Unix socket its name
  uint16_t port() const;     // 0 for Unix
  std::string text() const;  // "10.0.0.1:80", "[::1]:80", "unix:name"
};

// Waits until the descriptor can be read (or has ended); false when the deadline passed first.
bool wait_readable(int fd, Deadline);
bool wait_writable(int fd, Deadline);

// A connected stream.
class Socket {
 public:
  Socket() = default;
  explicit Socket(Fd fd) : fd_(std::move(fd)) {}  // made non-blocking by the caller

  // One attempt at each address that the host has.  Throws Error(timeout) at the deadline,
  // Error(system) when all refuse or the name is unknown.  TCP_NODELAY and keep-alive are set.
  static Socket connect(const std::string& host, uint16_t port, Deadline);
  // To the abstract Unix socket of that name.
  static Socket connect_local(const std::string& name, Deadline);

  // All of it, or an error: Error(timeout), Error(peer_lost) (peer -1) when the other end closed,
  // Error(system).  `op` begins the text.
  void write(const void* data, size_t length, Deadline, const char* op = "write");
  void read(void* data, size_t length, Deadline, const char* op = "read");
  // At least one byte, unless the deadline passes (then 0).  The end is Error(peer_lost).
  size_t read_some(void* data, size_t length, Deadline, const char* op = "read");
  // What can be had without waiting: 0 is nothing.  Errors as above.
  size_t try_write(const void* data, size_t length, const char* op = "write");
  size_t try_read(void* data, size_t length, const char* op = "read");

  int fd() const { return fd_.get(); }
  Fd release() { return std::move(fd_); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  Address local() const;
  Address peer() const;
  // Both ends are on this host.
  bool loopback() const;

 private:
  Fd fd_;
};

class Listener {
 public:
  // Port 0: any free one.  An empty host: every address of this host.  Throws Error(system).
  static Listener tcp(const std::string& host, uint16_t port, int backlog = 4096);
  static Listener local(const std::string& name, int backlog = 4096);  // abstract Unix socket

  Socket accept(Deadline);             // throws Error(timeout), Error(system)
  std::optional<Socket> try_accept();  // none when nobody waits; throws Error(system)
  int fd() const { return fd_.get(); }
  const Address& address() const { return address_; }
  uint16_t port() const { return address_.port(); }

 private:
  Fd fd_;
  Address address_;
};

// The address of this host that packets to that host leave from: what to publish so that those who
// reach the same host can reach this one.  Nothing is sent.  Throws Error(system).
std::string address_towards(const std::string& host, uint16_t port);

}  // namespace eager::comm
