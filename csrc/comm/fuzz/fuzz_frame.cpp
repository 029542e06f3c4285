// FrameParser and Reader against any bytes: frames that come out are the bytes that went in, and
// nothing above the limit comes out.
#include <algorithm>

#include "comm/error.h"
#include "comm/frame.h"
#include "input.h"

using namespace eager::comm;

namespace {

// Reads fields in an order that the payload itself gives.
void read_fields(const std::string& payload) {
  fuzz::Input order(reinterpret_cast<const uint8_t*>(payload.data()), payload.size());
  Reader r(payload);
  Writer again;
  try {
    while (r.left() > 0) {
      switch (order.byte() % 8) {
        case 0:
          again.u8(r.u8());
          break;
        case 1:
          again.u16(r.u16());
          break;
        case 2:
          again.u32(r.u32());
          break;
        case 3:
          again.u64(r.u64());
          break;
        case 4:
          again.i64(r.i64());
          break;
        case 5:
          again.string(r.string(64));
          break;
        case 6: {
          char raw[5];
          r.raw(raw, sizeof raw);
          again.raw(raw, sizeof raw);
          break;
        }
        default: {
          const std::string rest = r.rest();
          again.raw(rest.data(), rest.size());
        }
      }
    }
    r.end();
    fuzz::require(again.bytes() == payload, "fields are not what was read");
  } catch (const Error& e) {
    fuzz::require(e.kind == ErrorKind::protocol, "the wrong kind of error");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const size_t limit = input.byte() * size_t(4), piece = 1 + input.byte() % 64;
  // The stream: raw bytes, or frames with few of them wrong.
  std::string stream;
  if (input.byte() % 4 == 0) {
    stream = input.piece(size);
  } else {
    while (input.more()) {
      const uint8_t type = input.byte();
      std::string frame = encode_frame(type, input.piece(input.byte()));
      const uint8_t wrong = input.byte();
      if (wrong >= 128 && wrong - 128u < frame.size())
        frame[wrong - 128] ^= static_cast<char>(input.byte());
      stream += frame;
    }
  }
  FrameParser parser(limit);
  std::string out;
  try {
    for (size_t at = 0; at < stream.size();) {
      const size_t n = std::min(piece, stream.size() - at), missing = parser.missing();
      const size_t used = parser.take(stream.data() + at, n);
      fuzz::require(used > 0 && used <= n, "no progress");
      fuzz::require(used >= std::min(n, missing), "less taken than is missing");
      at += used;
      if (!parser.complete()) continue;
      const Frame frame = parser.pop();
      fuzz::require(frame.payload.size() <= limit, "a payload above the limit");
      read_fields(frame.payload);
      out += encode_frame(frame.type, frame.payload);
      fuzz::require(out.size() == at, "a frame ends elsewhere");
    }
  } catch (const Error& e) {
    fuzz::require(e.kind == ErrorKind::protocol, "the wrong kind of error");
  }
  fuzz::require(stream.compare(0, out.size(), out) == 0, "frames are not what came");
  return 0;
}
