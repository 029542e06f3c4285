#include "control.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "error.h"
#include "link.h"

namespace eager::comm {
namespace {

constexpr size_t kMaxPayload = kMaxOffer + 256;
constexpr size_t kMaxQueue = size_t(64) << 20;  // a peer that reads nothing is soon lost anyway
constexpr size_t kMaxDescriptors = 64;          // that came before their frames

}  // namespace

Control::Control(Socket socket, bool local)
    : socket_(std::move(socket)), local_(local), parser_(kMaxPayload) {}

bool Control::send(Message type, const std::string& payload, int fd) {
  Outgoing out;
  out.bytes = encode_frame(static_cast<uint8_t>(type), payload);
  if (fd >= 0) {
    out.fd = Fd(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!out.fd) fail_errno("allocate", "duplicating a descriptor", errno);
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (broken_) return true;
    queued_ += out.bytes.size();
    queue_.push_back(std::move(out));
    if (queued_ > kMaxQueue) {
      broken_ = true;
      queue_.clear();
      close();
      return true;
    }
  }
  return flush();
}

bool Control::flush() {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (!queue_.empty()) {
    Outgoing& out = queue_.front();
    iovec piece{out.bytes.data() + out.sent, out.bytes.size() - out.sent};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
    if (out.fd && out.sent == 0) {  // it travels with the first byte of its frame
      message.msg_control = space;
      message.msg_controllen = sizeof space;
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      const int fd = out.fd.get();
      std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    const ssize_t n = sendmsg(socket_.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) return false;
      broken_ = true;  // receive() tells of it
      queue_.clear();
      return true;
    }
    out.sent += static_cast<size_t>(n);
    queued_ -= static_cast<size_t>(n);
    if (out.sent == out.bytes.size()) queue_.pop_front();
  }
  return true;
}

// Reads more bytes; false when there are none now.
bool Control::fill() {
  iovec piece{buffer_, sizeof buffer_};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int) * 4)];
  if (local_) {
    message.msg_control = space;
    message.msg_controllen = sizeof space;
  }
  ssize_t n;
  do {
    n = recvmsg(socket_.fd(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
  if (n < 0)
    fail(ErrorKind::peer_lost, "control", std::string("connection broke: ") + strerror(errno));
  for (cmsghdr* c = local_ ? CMSG_FIRSTHDR(&message) : nullptr; c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      descriptors_.emplace_back(fd);
    }
  }
  if (n == 0) fail(ErrorKind::peer_lost, "control", "connection ended");
  if (message.msg_flags & MSG_CTRUNC)
    fail(ErrorKind::system, "control", "a passed descriptor did not arrive", "", "",
         "raise the limit of open files (ulimit -n)");
  if (descriptors_.size() > kMaxDescriptors)
    fail(ErrorKind::protocol, "control", "too many descriptors");
  begin_ = 0;
  end_ = static_cast<size_t>(n);
  return true;
}

std::optional<Incoming> Control::receive() {
  for (;;) {
    while (begin_ < end_) {
      begin_ += parser_.take(buffer_ + begin_, end_ - begin_);
      if (!parser_.complete()) continue;
      Frame frame = parser_.pop();
      Incoming in{static_cast<Message>(frame.type), std::move(frame.payload), Fd()};
      if (in.type < Message::hello || in.type > Message::goodbye)
        fail(ErrorKind::protocol, "control", "unknown message", "",
             "type " + std::to_string(frame.type));
      if (in.type == Message::region) {
        if (descriptors_.empty())
          fail(ErrorKind::protocol, "control", "memory was announced without its descriptor");
        in.fd = std::move(descriptors_.front());
        descriptors_.pop_front();
      }
      return in;
    }
    if (!fill()) return std::nullopt;
  }
}

void Control::close() { shutdown(socket_.fd(), SHUT_RDWR); }

}  // namespace eager::comm
