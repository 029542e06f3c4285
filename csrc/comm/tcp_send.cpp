#include "tcp_send.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>
// After time.h: it uses struct timespec.
#include <linux/errqueue.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

constexpr size_t kBudget = size_t(4) << 20;      // bytes of one pump()
constexpr size_t kLargestCut = size_t(4) << 20;  // keeps sockets busy to the end of a put
constexpr size_t kPage = 4096;
constexpr int kRanges = 16;  // of memory per system call

// The peer may answer what it got at once, into the memory it was read from, and another thread
// writes that while ThreadSanitizer still books the read, which it does after the call.
#ifdef __SANITIZE_THREAD__
extern "C" void AnnotateIgnoreReadsBegin(const char* file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char* file, int line);
#else
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
#endif

ssize_t send_message(int fd, const msghdr& message, int flags) {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const ssize_t sent = ::sendmsg(fd, &message, flags);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return sent;
}

}  // namespace

TcpSender::TcpSender(std::vector<int> sockets, int peer, bool zero_copy, size_t queue_bytes)
    : peer_(peer), queue_bytes_(queue_bytes), streams_(sockets.size()) {
  for (size_t i = 0; i < sockets.size(); ++i) {
    streams_[i].fd = sockets[i];
    streams_[i].zero_copy = zero_copy;
  }
}

uint64_t TcpSender::put(uint32_t region, uint64_t offset, uint32_t counter, const Piece* pieces,
                        int n) {
  Put put;
  put.pieces.reserve(size_t(n));
  for (int i = 0; i < n; ++i) {
    if (!pieces[i].length) continue;
    put.pieces.push_back(pieces[i]);
    put.length += pieces[i].length;
  }
  // Several cuts per socket, so that a fast one takes more of them.
  put.cut_length = std::clamp(put.length / (4 * streams_.size()), kTcpPiece, kLargestCut);
  put.cut_length = std::max(put.cut_length, put.length / kTcpPieces + 1);
  put.cut_length = (put.cut_length + kPage - 1) / kPage * kPage;
  put.unfinished = put.length ? uint32_t((put.length - 1) / put.cut_length + 1) : 1;
  put.header = {kTcpMagic, region, offset, 0, 0, counter, put.unfinished};

  std::lock_guard lock(mutex_);
  if (stopped_) broke("it was declared lost");
  if (!puts_.empty() && (queued_ > queue_bytes_ || puts_.size() >= kTcpQueuedPuts)) return 0;
  const uint64_t ticket = put.header.sequence = ++sequence_;
  queued_ += put.length;
  puts_.push_back(std::move(put));
  pending_.store(true, std::memory_order_release);
  send_all();
  return ticket;
}

void TcpSender::pump() {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || stopped_) return;
  for (Stream& s : streams_) completions(s);
  send_all();
}

void TcpSender::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  pending_.store(false, std::memory_order_release);
}

// One call per socket in turn, until none takes more or it has been a lot.
void TcpSender::send_all() {
  size_t sent = 0;
  for (bool more = true; more && sent < kBudget;) {
    more = false;
    for (Stream& s : streams_) more |= send_some(s, sent);
  }
  const bool uncut = uncut_ < puts_.size();
  for (Stream& s : streams_) s.blocked.store(s.busy || uncut, std::memory_order_release);
}

// One system call.  False: nothing to send, or the socket takes no more now.
bool TcpSender::send_some(Stream& s, size_t& sent) {
  if (!s.busy && !next_cut(s)) return false;
  Put& put = find(s.header.sequence);
  iovec ranges[kRanges];
  msghdr message{};
  message.msg_iov = ranges;
  int n = 0, flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  // The header is gone from here before the kernel would be done with it, so it is copied.
  const bool pinned = s.zero_copy && s.left >= kTcpPiece / 4;
  const size_t header = s.header_left;
  if (header) ranges[n++] = {reinterpret_cast<char*>(&s.header) + sizeof s.header - header, header};
  if (pinned && header)
    flags |= MSG_MORE;
  else if (pinned)
    flags |= MSG_ZEROCOPY;
  if (!(pinned && header)) n += gather(s, put, ranges + n, kRanges - n);
  message.msg_iovlen = size_t(n);

  ssize_t got = send_message(s.fd, message, flags);
  if (got < 0 && errno == ENOBUFS && (flags & MSG_ZEROCOPY)) {
    flags &= ~MSG_ZEROCOPY;  // too much memory is pinned for now
    got = send_message(s.fd, message, flags);
  }
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    if (errno == EINTR) return true;
    broke(std::strerror(errno));
  }
  sent += size_t(got);
  const size_t of_header = std::min(header, size_t(got));
  s.header_left -= of_header;
  const size_t bytes = size_t(got) - of_header;
  s.left -= bytes;
  advance(put, s.cursor, bytes);
  if ((flags & MSG_ZEROCOPY) && got > 0) {
    if (s.flights.empty() || !s.flights.back().open) {
      s.flights.emplace_back();
      s.flights.back().first = s.calls;
      s.flights.back().sequence = s.header.sequence;
    }
    ++s.flights.back().calls;
    ++s.calls;
    zero_copy_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }
  if (s.header_left || s.left) return true;
  s.busy = false;
  if (!s.flights.empty() && s.flights.back().open) {
    s.flights.back().open = false;
    land(s);
  } else {
    finish(s.header.sequence);
  }
  return true;
}

void TcpSender::broke(const std::string& why) const {
  const std::string rank = "rank " + std::to_string(peer_);
  fail(ErrorKind::peer_lost, "tcp", rank + " is lost: sending failed: " + why, "", "", "", peer_);
}

// Gives the stream the next part of the oldest put that still has one.
bool TcpSender::next_cut(Stream& s) {
  if (uncut_ == puts_.size()) return false;
  Put& put = puts_[uncut_];
  const size_t length = std::min(put.cut_length, put.length - put.cut);
  s.header = put.header;
  s.header.offset += put.cut;
  s.header.length = length;
  s.header_left = sizeof s.header;
  s.left = length;
  s.cursor = put.cursor;
  s.busy = true;
  put.cut += length;
  advance(put, put.cursor, length);
  if (put.cut == put.length) ++uncut_;
  return true;
}

int TcpSender::gather(const Stream& s, const Put& put, iovec* to, int room) const {
  int n = 0;
  Cursor at = s.cursor;
  for (size_t left = s.left; left && n < room; ++at.piece, at.offset = 0) {
    const Piece& piece = put.pieces[at.piece];
    const size_t length = std::min(left, piece.length - at.offset);
    // sendmsg takes what it only reads without const.
    char* data = static_cast<char*>(const_cast<void*>(piece.data)) + at.offset;
    to[n++] = {data, length};
    left -= length;
  }
  return n;
}

// Reads which zero-copy calls the kernel is done with.
void TcpSender::completions(Stream& s) {
  while (!s.flights.empty()) {
    alignas(cmsghdr) char control[256];
    msghdr message{};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(s.fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
      const bool ip = (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) ||
                      (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR);
      if (!ip) continue;
      sock_extended_err e;
      std::memcpy(&e, CMSG_DATA(c), sizeof e);
      if (e.ee_origin != SO_EE_ORIGIN_ZEROCOPY) continue;
      // The kernel copied after all (loopback, a virtual device): then pinning is a waste.
      if (e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) s.zero_copy = false;
      // Calls ee_info..ee_data are done; the numbers wrap around.
      for (Flight& f : s.flights) {
        const int64_t first = int32_t(e.ee_info - f.first), last = int32_t(e.ee_data - f.first);
        const int64_t from = std::max<int64_t>(first, 0);
        const int64_t to = std::min<int64_t>(last, int64_t(f.calls) - 1);
        if (from <= to) f.completed += uint32_t(to - from + 1);
      }
    }
    land(s);
  }
}

void TcpSender::land(Stream& s) {
  while (!s.flights.empty() && !s.flights.front().open &&
         s.flights.front().completed == s.flights.front().calls) {
    const uint64_t sequence = s.flights.front().sequence;
    s.flights.pop_front();
    finish(sequence);
  }
}

// The memory of one cut is not needed any more.
void TcpSender::finish(uint64_t sequence) {
  --find(sequence).unfinished;
  while (!puts_.empty() && !puts_.front().unfinished) {
    queued_ -= puts_.front().length;
    sent_.store(puts_.front().header.sequence, std::memory_order_release);
    puts_.pop_front();
    --uncut_;
  }
  if (puts_.empty()) pending_.store(false, std::memory_order_release);
}

void TcpSender::advance(const Put& put, Cursor& at, size_t bytes) {
  at.offset += bytes;
  while (at.piece < put.pieces.size() && at.offset >= put.pieces[at.piece].length)
    at.offset -= put.pieces[at.piece++].length;
}

}  // namespace eager::comm
