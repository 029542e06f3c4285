// libFuzzer target: the receiving half of a TCP link, fed with arbitrary bytes on three streams.
//
// The input is a little program, so that the fuzzer gets behind the checks of the first header:
// some instructions feed raw bytes, some a header that is right but for what the input says.
// Regions are exact heap blocks: AddressSanitizer sees every byte that is put beside them.
#include <algorithm>
#include <cstring>
#include <memory>

#include "comm/error.h"
#include "comm/tcp_receive.h"
#include "input.h"

using namespace eager::comm;

namespace {

constexpr int kStreams = 3;
constexpr size_t kLengths[] = {0, 1, 64, 20000};  // of regions 0, 1, 2, 3

uint64_t number(fuzz::Input& in, int bytes) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; ++i) v |= uint64_t(in.byte()) << (8 * i);
  return v;
}

// What a socket would do with `n` bytes for the stream.
void feed(TcpReceiver& receiver, int stream, const uint8_t* data, size_t n) {
  while (n) {
    iovec to[2];
    const int ranges = receiver.want(stream, to);
    if (!ranges) return;
    size_t taken = 0;
    for (int i = 0; i < ranges && taken < n; ++i) {
      const size_t part = std::min(to[i].iov_len, n - taken);
      std::memcpy(to[i].iov_base, data + taken, part);
      taken += part;
    }
    fuzz::require(taken > 0, "want() gives room");
    receiver.take(stream, taken);
    data += taken;
    n -= taken;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto counters = std::make_unique<Counters>();
  static const std::vector<uint8_t> payload(32768, 0xa5);
  std::unique_ptr<std::byte[]> memory[4];
  TcpReceiver receiver(counters.get(), 1, kStreams);
  const auto attach = [&](uint32_t id) {
    memory[id].reset(new std::byte[kLengths[id]]);
    Region region;
    region.id = id;
    region.base = memory[id].get();
    region.length = kLengths[id];
    receiver.attach(region);
  };
  for (uint32_t id = 0; id < 4; ++id) attach(id);
  uint32_t begun = 0;
  const uint32_t before = counters->at[16].value.load();
  fuzz::Input in(data, size);
  try {
    while (in.more()) {
      const uint8_t op = in.byte();
      const int stream = (op >> 2) % kStreams;
      if (op % 4 == 0) {  // raw bytes
        const std::string bytes = in.piece(in.byte());
        feed(receiver, stream, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
      } else if (op % 4 == 1) {  // a header and all its bytes
        TcpHeader h{kTcpMagic, 0, 0, 0, 0, 16, 0};
        h.region = uint32_t(number(in, 1) % 5);
        h.offset = number(in, 2);
        h.length = number(in, 2);
        h.sequence = number(in, 2);
        h.pieces = uint32_t(number(in, 1) % 8);
        if (op & 64) h.counter = uint32_t(number(in, 4));
        if (op & 128) h.offset |= number(in, 8) << 8;
        ++begun;
        feed(receiver, stream, reinterpret_cast<const uint8_t*>(&h), sizeof h);
        if (!receiver.ahead(stream))
          feed(receiver, stream, payload.data(), std::min<size_t>(h.length, payload.size()));
      } else if (op % 4 == 2) {  // payload for whatever is under way
        feed(receiver, stream, payload.data(), number(in, 2) % payload.size());
      } else {  // a region goes, or comes anew elsewhere
        const uint32_t id = (op >> 4) % 4;
        receiver.detach(id);
        memory[id].reset();
        if (op & 128) attach(id);
      }
    }
  } catch (const Error& e) {
    fuzz::require(e.kind == ErrorKind::protocol, "wrong bytes are Error(protocol)");
    return 0;
  }
  // No counter moves without a put.  (Raw bytes can hold headers, too.)
  fuzz::require(counters->at[16].value.load() - before <= begun + size / sizeof(TcpHeader),
                "a counter moves for a put only");
  return 0;
}
