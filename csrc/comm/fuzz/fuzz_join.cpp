// What ranks tell each other while they join: any bytes are a message or an error; what was decoded
// stays within its limits and is encoded to the same bytes again.
#include "comm/error.h"
#include "comm/join_messages.h"
#include "comm/link.h"
#include "comm/tcp.h"
#include "input.h"

using namespace eager::comm;

namespace {

std::string card(fuzz::Input& input) {
  Card c;
  c.host = input.piece(input.byte());
  c.address = input.piece(input.byte());
  c.local_name = input.piece(input.byte());
  c.port = uint16_t(input.byte() * 257);
  return c.encode();
}

std::string hello(fuzz::Input& input) {
  Hello h;
  h.version = input.byte() % 8 == 0 ? input.byte() : Hello::kVersion;
  h.host = input.piece(input.byte());
  h.abilities.forced = input.piece(input.byte() % 20);
  h.abilities.verbs = input.byte();
  h.abilities.verbs_text = input.piece(input.byte() * 5u);
  return h.encode();
}

std::string proposal(fuzz::Input& input) {
  return Proposal{input.piece(input.byte() % 20), input.piece(input.byte() * 20u)}.encode();
}

std::string tcp_offer(fuzz::Input& input, bool listens) {
  TcpOffer o;
  o.version = input.byte() % 8 == 0 ? input.byte() : TcpOffer::kVersion;
  o.port = input.byte();
  o.sockets = input.byte() % 20;
  o.token = input.piece(input.byte() % 8 == 0 ? input.byte() : TcpOffer::kToken);
  o.address = input.piece(input.byte());
  return o.encode(listens);
}

void decode(uint8_t kind, const std::string& bytes) {
  std::string again;
  if (kind == 0) {
    const Card c = Card::decode(bytes);
    fuzz::require(c.host.size() <= 256 && c.address.size() <= 256, "a card is too large");
    again = c.encode();
  } else if (kind == 1) {
    const Hello h = Hello::decode(bytes);
    if (h.version != Hello::kVersion) return;
    fuzz::require(h.host.size() <= 256 && h.abilities.forced.size() <= 16, "a hello is too large");
    again = h.encode();
  } else if (kind == 2) {
    const Proposal p = Proposal::decode(bytes);
    fuzz::require(p.transport.size() <= 16 && p.offer.size() <= kMaxOffer, "an offer is too large");
    again = p.encode();
  } else {
    const bool listens = kind == 4;
    const TcpOffer o = TcpOffer::decode(bytes, listens);
    if (o.version != TcpOffer::kVersion) return;
    if (listens)
      fuzz::require(o.port > 0 && o.sockets >= 1 && o.sockets <= kTcpSockets &&
                        o.token.size() == TcpOffer::kToken,
                    "an offer that none can accept");
    again = o.encode(listens);
  }
  fuzz::require(again == bytes, "a message changes when it is encoded again");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t kind = input.byte() % 5, mode = input.byte();
  std::string bytes;
  if (mode < 64) {
    bytes = input.piece(size);
  } else {
    bytes = kind == 0   ? card(input)
            : kind == 1 ? hello(input)
            : kind == 2 ? proposal(input)
                        : tcp_offer(input, kind == 4);
    if (mode >= 160 && !bytes.empty())
      bytes[input.byte() % bytes.size()] ^= static_cast<char>(input.byte());
  }
  try {
    decode(kind, bytes);
  } catch (const Error& e) {
    fuzz::require(e.kind == ErrorKind::protocol, "an error of another kind");
  }
  return 0;
}
