#include "frame.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

constexpr uint8_t kMagic[4] = {'E', 'J', 'C', '1'};

}  // namespace

std::string frame_header(uint8_t type, size_t payload_length) {
  if (payload_length > UINT32_MAX)
    fail(ErrorKind::invalid, "frame", "the payload is too long", "at most 4 GiB",
         std::to_string(payload_length) + " bytes");
  Writer w;
  w.raw(kMagic, sizeof kMagic).u8(type).u8(0).u16(0).u32(static_cast<uint32_t>(payload_length));
  return w.take();
}

std::string encode_frame(uint8_t type, const std::string& payload) {
  return frame_header(type, payload.size()) + payload;
}

void FrameParser::check_header() {
  if (!std::equal(kMagic, kMagic + sizeof kMagic, header_))
    fail(ErrorKind::protocol, "frame", "these bytes do not begin a frame");
  Reader r(header_ + sizeof kMagic, kFrameHeader - sizeof kMagic);
  frame_.type = r.u8();
  if (r.u8() != 0 || r.u16() != 0)
    fail(ErrorKind::protocol, "frame", "reserved bytes of a header are not zero");
  length_ = r.u32();
  if (length_ > limit_)
    fail(ErrorKind::protocol, "frame", "a frame announces more than is accepted here",
         "at most " + std::to_string(limit_) + " bytes", std::to_string(length_) + " bytes");
}

size_t FrameParser::take(const void* data, size_t length) {
  const auto* at = static_cast<const uint8_t*>(data);
  size_t taken = 0;
  if (header_size_ < kFrameHeader) {
    taken = std::min(length, kFrameHeader - header_size_);
    std::memcpy(header_ + header_size_, at, taken);
    header_size_ += taken;
    if (header_size_ < kFrameHeader) return taken;
    check_header();
  }
  const size_t n = std::min(length - taken, length_ - frame_.payload.size());
  frame_.payload.append(reinterpret_cast<const char*>(at + taken), n);
  return taken + n;
}

Frame FrameParser::pop() {
  if (!complete()) fail(ErrorKind::invalid, "frame", "there is no complete frame to pop");
  header_size_ = length_ = 0;
  return std::exchange(frame_, Frame{});
}

size_t FrameParser::missing() const {
  if (header_size_ < kFrameHeader) return kFrameHeader - header_size_;
  return length_ - frame_.payload.size();
}

Writer& Writer::number(uint64_t v, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out_.push_back(static_cast<char>(v >> (8 * i) & 0xff));
  return *this;
}

Writer& Writer::raw(const void* data, size_t length) {
  out_.append(static_cast<const char*>(data), length);
  return *this;
}

Writer& Writer::string(const std::string& s) {
  if (s.size() > UINT32_MAX)
    fail(ErrorKind::invalid, "frame", "a string is too long", "at most 4 GiB",
         std::to_string(s.size()) + " bytes");
  u32(static_cast<uint32_t>(s.size()));
  return raw(s.data(), s.size());
}

const uint8_t* Reader::need(size_t length) {
  if (length > left_)
    fail(ErrorKind::protocol, "frame", "a message ends too early",
         std::to_string(length) + " bytes more", std::to_string(left_) + " bytes");
  left_ -= length;
  return std::exchange(at_, at_ + length);
}

uint64_t Reader::number(size_t bytes) {
  const uint8_t* p = need(bytes);
  uint64_t v = 0;
  for (size_t i = 0; i < bytes; ++i) v |= uint64_t(p[i]) << (8 * i);
  return v;
}

void Reader::raw(void* out, size_t length) {
  const uint8_t* p = need(length);
  if (length > 0) std::memcpy(out, p, length);
}

std::string Reader::string(size_t longest) {
  const size_t length = u32();
  if (length > longest)
    fail(ErrorKind::protocol, "frame", "a string in a message is too long",
         "at most " + std::to_string(longest) + " bytes", std::to_string(length) + " bytes");
  const uint8_t* p = need(length);
  return std::string(reinterpret_cast<const char*>(p), length);
}

std::string Reader::rest() {
  const size_t length = left_;
  return std::string(reinterpret_cast<const char*>(need(length)), length);
}

void Reader::end() const {
  if (left_ > 0)
    fail(ErrorKind::protocol, "frame", "a message is longer than its fields", "",
         std::to_string(left_) + " bytes too many");
}

}  // namespace eager::comm
