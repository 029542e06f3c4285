#include "tcp_receive.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace eager::comm {

TcpReceiver::TcpReceiver(Counters* counters, int peer, int streams)
    : counters_(counters), peer_(peer), streams_(size_t(streams)), puts_(kTcpWindow) {}

void TcpReceiver::attach(const Region& region) { regions_[region.id] = region; }

void TcpReceiver::detach(uint32_t id) {
  regions_.erase(id);
  for (Stream& s : streams_)
    if (s.left && s.region == id) s.to = nullptr;
}

bool TcpReceiver::between(int stream) const {
  const Stream& s = streams_[size_t(stream)];
  return !s.left && s.begin == s.end;
}

int TcpReceiver::want(int stream, iovec (&to)[2]) {
  Stream& s = streams_[size_t(stream)];
  if (s.ahead) return 0;
  int n = 0;
  if (s.left) {
    if (!s.to)
      refuse("a put into a region that was released while it was on its way",
             "regions that are in use", "region " + std::to_string(s.region));
    to[n++] = {s.to, s.left};
  }
  to[n++] = {s.buffer.data() + s.end, s.buffer.size() - s.end};
  return n;
}

void TcpReceiver::take(int stream, size_t n) {
  Stream& s = streams_[size_t(stream)];
  const uint64_t before = next_;
  const size_t direct = std::min(n, s.left);
  if (direct) {
    s.to += direct;
    s.left -= direct;
    if (!s.left) finish(s);
  }
  s.end += n - direct;
  parse(s);
  // Streams that were ahead may go on with what they have already read.
  for (uint64_t seen = before; seen != next_;) {
    seen = next_;
    for (Stream& other : streams_)
      if (other.ahead) parse(other);
  }
}

// Works through the buffer.  Leaves less than a header there, or a header that is ahead.
void TcpReceiver::parse(Stream& s) {
  s.ahead = false;
  while (s.end - s.begin >= sizeof(TcpHeader)) {
    TcpHeader header;
    std::memcpy(&header, s.buffer.data() + s.begin, sizeof header);
    if (!begin(s, header)) {
      s.ahead = true;
      return;
    }
    s.begin += sizeof header;
    const size_t here = std::min(s.left, s.end - s.begin);
    if (here) std::memcpy(s.to, s.buffer.data() + s.begin, here);
    s.begin += here;
    s.to += here;
    s.left -= here;
    if (s.left) break;
    finish(s);
  }
  std::memmove(s.buffer.data(), s.buffer.data() + s.begin, s.end - s.begin);
  s.end -= s.begin;
  s.begin = 0;
}

// Checks everything about a piece before a byte of it is placed.  False: it is ahead.
bool TcpReceiver::begin(Stream& s, const TcpHeader& h) {
  if (h.magic != kTcpMagic)
    refuse("bytes that are no header", "magic " + std::to_string(kTcpMagic),
           std::to_string(h.magic));
  if (h.sequence < next_ || h.sequence < s.sequence)
    refuse("a put came out of order", "sequence >= " + std::to_string(std::max(next_, s.sequence)),
           std::to_string(h.sequence));
  if (h.counter >= kCounters && h.counter != kNoCounter)
    refuse("a counter that does not exist", "less than " + std::to_string(kCounters),
           std::to_string(h.counter));
  if (h.pieces == 0 || h.pieces > kTcpPieces)
    refuse("a put of a wrong number of pieces", "1 to " + std::to_string(kTcpPieces),
           std::to_string(h.pieces));
  std::byte* to = nullptr;
  if (h.length) {
    const auto found = regions_.find(h.region);
    if (found == regions_.end())
      refuse("a put into an unknown region", "a region that this rank gave a key to",
             "region " + std::to_string(h.region));
    const Region& region = found->second;
    if (h.offset > region.length || h.length > region.length - h.offset)
      refuse("a put outside its region", "at most " + std::to_string(region.length) + " bytes",
             std::to_string(h.length) + " bytes at offset " + std::to_string(h.offset));
    to = region.base + h.offset;
  } else if (h.pieces != 1) {
    refuse("an empty piece of a larger put", "at least 1 byte", "0 bytes");
  }
  if (h.sequence - next_ >= kTcpWindow) return false;

  Put& put = puts_[h.sequence % kTcpWindow];
  if (!put.pieces) put = {h.pieces, h.pieces, h.counter, 0};
  if (put.pieces != h.pieces || put.counter != h.counter || put.begun == put.pieces)
    refuse("pieces of one put contradict each other",
           std::to_string(put.pieces) + " pieces, counter " + std::to_string(put.counter),
           "one more of " + std::to_string(h.pieces) + ", counter " + std::to_string(h.counter));
  ++put.begun;
  s.to = to;
  s.left = h.length;
  s.region = h.region;
  s.sequence = h.sequence;
  return true;
}

// A piece is complete; advances the counters of all puts that are so now.
void TcpReceiver::finish(Stream& s) {
  --puts_[s.sequence % kTcpWindow].left;
  for (;;) {
    Put& put = puts_[next_ % kTcpWindow];
    if (!put.pieces || put.left) return;
    const uint32_t counter = put.counter;
    put = {};
    ++next_;
    if (counter != kNoCounter) advance(counters_->at[counter]);
  }
}

void TcpReceiver::refuse(const std::string& problem, const std::string& expected,
                         const std::string& given) const {
  fail(ErrorKind::protocol, "tcp", "rank " + std::to_string(peer_) + " sent " + problem, expected,
       given, "run the same version on every rank", peer_);
}

}  // namespace eager::comm
