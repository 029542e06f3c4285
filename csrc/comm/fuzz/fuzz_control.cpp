// The control connection of two ranks: any bytes, cut anywhere, come out as messages or as an
// error; the decoders of their payloads take what the encoders give and refuse the rest.
#include <sys/socket.h>

#include <algorithm>

#include "comm/control.h"
#include "comm/error.h"
#include "comm/liveness.h"
#include "input.h"

using namespace eager::comm;

namespace {

constexpr int kSize = 4;  // ranks

// What a message says goes to the book of who lives, as in a mesh.
void decode(Liveness& liveness, const Incoming& in) {
  if (in.type == Message::heartbeat) {
    uint64_t answer;
    std::vector<WaitReport> waits = decode_heartbeat(in.payload, kSize, &answer);
    const std::string again = encode_heartbeat(answer, waits);
    fuzz::require(again == in.payload, "a heartbeat changes when it is encoded again");
    for (const WaitReport& w : waits)
      fuzz::require(w.peer >= 0 && w.peer < kSize, "a heartbeat names a rank that is none");
    liveness.heartbeat(1, answer, std::move(waits));
  } else if (in.type == Message::failed) {
    Failure failure = decode_failure(in.payload, kSize);
    fuzz::require(encode_failure(failure) == in.payload, "a failure changes when encoded again");
    fuzz::require(failure.because >= -1 && failure.because < kSize, "blames no rank");
    liveness.failed(1, std::move(failure));
  }
}

std::string heartbeat(fuzz::Input& input) {
  const uint8_t waits = input.byte() % 40;
  Writer w;
  w.u64(input.byte()).u8(waits);
  std::string text = w.take();
  return text + input.piece(input.byte());
}

// A message as a mesh sends it, if the input does not spoil it.
std::string message(fuzz::Input& input) {
  const uint8_t kind = input.byte() % 4;
  std::string bytes;
  if (kind == 0) {
    std::vector<WaitReport> waits(input.byte() % 4);
    for (WaitReport& w : waits) {
      w.group = input.byte();
      w.sequence = input.byte();
      w.peer = input.byte() % kSize;
      w.op = input.piece(input.byte() % 40);
    }
    bytes = encode_frame(uint8_t(Message::heartbeat), encode_heartbeat(input.byte(), waits));
  } else if (kind == 1) {
    const Failure f{input.byte(), input.byte() % (kSize + 1) - 1, input.piece(input.byte())};
    bytes = encode_frame(uint8_t(Message::failed), encode_failure(f));
  } else if (kind == 2) {
    bytes = encode_frame(uint8_t(Message::heartbeat), heartbeat(input));
  } else {
    const uint8_t type = input.byte() % 12;
    bytes = encode_frame(type, input.piece(input.byte()));
  }
  const uint8_t spoil = input.byte();
  if (spoil >= 128) bytes[(spoil - 128u) % bytes.size()] ^= static_cast<char>(input.byte());
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  int ends[2];
  fuzz::require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
                "no sockets");
  Socket peer{Fd(ends[0])};
  Control control(Socket{Fd(ends[1])}, true);
  Liveness liveness(0, kSize, std::chrono::hours(1));
  try {
    while (input.more()) {
      const std::string bytes = input.byte() % 8 == 0 ? input.piece(input.byte()) : message(input);
      const size_t piece = 1 + std::max<size_t>(input.byte() * 8u, bytes.size() / 8);
      for (size_t at = 0; at < bytes.size(); at += piece) {
        peer.try_write(bytes.data() + at, std::min(piece, bytes.size() - at));
        while (const auto in = control.receive()) {
          fuzz::require(in->type >= Message::hello && in->type <= Message::goodbye,
                        "a message of no type");
          fuzz::require(in->type != Message::region, "memory without a descriptor");
          decode(liveness, *in);
        }
      }
    }
  } catch (const Error& e) {
    fuzz::require(e.kind == ErrorKind::protocol, "the wrong kind of error");
  }
  return 0;
}
