// Control frames: how messages of the store and of the mesh lie in a byte stream.
//
//   bytes  0..3   magic "EJC1"
//          4      type, the protocol's own
//          5..7   zero
//          8..11  length of the payload
//          12..   payload
//
// Numbers are little-endian.  Nothing here does I/O: bytes come in, frames come out, and whatever
// bytes come, memory stays within the parser's limit.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace eager::comm {

inline constexpr size_t kFrameHeader = 12;

struct Frame {
  uint8_t type = 0;
  std::string payload;
};

// The header of a frame whose payload is sent separately.
std::string frame_header(uint8_t type, size_t payload_length);
// Header and payload.
std::string encode_frame(uint8_t type, const std::string& payload);

// Takes a byte stream apart:
//
//   while (n > 0) {
//     const size_t used = parser.take(data, n);
//     data += used, n -= used;
//     if (parser.complete()) handle(parser.pop());
//   }
class FrameParser {
 public:
  // `limit`: the longest payload that is accepted.
  explicit FrameParser(size_t limit) : limit_(limit) {}

  // Takes bytes up to the end of one frame and returns how many it took: all of them, or fewer
  // when the frame is complete (none while a complete frame has not been popped).  Throws
  // Error(protocol) as soon as a header is wrong.  Memory grows with the bytes that came, never
  // with the length that was announced.
  size_t take(const void* data, size_t length);
  bool complete() const { return header_size_ == kFrameHeader && frame_.payload.size() == length_; }
  // The complete frame; the parser then begins the next one.
  Frame pop();
  // How many bytes are missing from the header or, once that is there, from the payload.
  size_t missing() const;
  // In the midst of a frame: an end of the stream here is an error.
  bool partial() const { return header_size_ > 0 && !complete(); }

 private:
  void check_header();

  size_t limit_;
  uint8_t header_[kFrameHeader] = {};
  size_t header_size_ = 0;  // bytes of it that came
  size_t length_ = 0;       // of the payload, once the header came
  Frame frame_;
};

// Composes a payload.
class Writer {
 public:
  Writer& u8(uint8_t v) { return number(v, 1); }
  Writer& u16(uint16_t v) { return number(v, 2); }
  Writer& u32(uint32_t v) { return number(v, 4); }
  Writer& u64(uint64_t v) { return number(v, 8); }
  Writer& i64(int64_t v) { return number(static_cast<uint64_t>(v), 8); }
  // As they are; the reader knows the length.
  Writer& raw(const void* data, size_t length);
  // Length in 32 bits, then the bytes.  Throws Error(invalid) above 4 GiB.
  Writer& string(const std::string&);

  const std::string& bytes() const { return out_; }
  std::string take() { return std::move(out_); }

 private:
  Writer& number(uint64_t v, size_t bytes);

  std::string out_;
};

// Reads what a Writer wrote.  The bytes stay the caller's.  Every method throws Error(protocol)
// rather than read beyond the end.
class Reader {
 public:
  explicit Reader(const std::string& payload) : Reader(payload.data(), payload.size()) {}
  Reader(const void* data, size_t length) : at_(static_cast<const uint8_t*>(data)), left_(length) {}

  uint8_t u8() { return static_cast<uint8_t>(number(1)); }
  uint16_t u16() { return static_cast<uint16_t>(number(2)); }
  uint32_t u32() { return static_cast<uint32_t>(number(4)); }
  uint64_t u64() { return number(8); }
  int64_t i64() { return static_cast<int64_t>(number(8)); }
  void raw(void* out, size_t length);
  std::string string(size_t longest);  // also an error: longer than this
  std::string rest();                  // all that is left
  size_t left() const { return left_; }
  void end() const;  // an error: bytes are left

 private:
  uint64_t number(size_t bytes);
  const uint8_t* need(size_t length);

  const uint8_t* at_;
  size_t left_;
};

}  // namespace eager::comm
