// The handshake against any bytes, and with any change on the way: nobody gets in without the
// secret, and no more bytes are taken than were asked for.
#include <algorithm>

#include "comm/auth.h"
#include "input.h"

using namespace eager::comm;

namespace {

void feed(Handshake& handshake, const std::string& bytes, size_t piece) {
  for (size_t at = 0; at < bytes.size();) {
    const size_t n = std::min(piece, bytes.size() - at), wanted = handshake.wanted();
    fuzz::require(wanted <= 80, "a stranger is given too much memory");
    const size_t used = handshake.take(bytes.data() + at, n);
    fuzz::require(used == std::min(n, wanted), "not the bytes that were asked for");
    if (used == 0) return;
    at += used;
  }
}

void require_over(const Handshake& handshake) {
  if (handshake.done() || handshake.failed())
    fuzz::require(handshake.wanted() == 0, "wants bytes when it is over");
  fuzz::require(handshake.failed() == !handshake.why().empty(), "fails without a reason");
}

// Somebody who does not know the secret says anything.
void stranger(fuzz::Input& input, Role role, size_t piece) {
  const std::string secret = input.byte() % 2 ? "secret" : "";
  Handshake handshake(role, {secret, "context", 1}, Handshake::Nonce{});
  std::string said = input.byte() % 2 ? "EJA1" : "";
  said += input.piece(1000);
  feed(handshake, said, piece);
  // The other role's first message may be guessed, a proof may not.
  fuzz::require(!handshake.done(), "a stranger was let in");
  fuzz::require(handshake.output().size() <= 80 + 48, "says too much");
  require_over(handshake);
}

// Both know it, and somebody between them changes what they say.
void meddler(fuzz::Input& input, size_t piece) {
  Handshake acceptor(Role::acceptor, {"secret", "context", 1}, Handshake::Nonce{1});
  Handshake connector(Role::connector, {"secret", "context", 2}, Handshake::Nonce{2});
  bool changed_before_proof = false, changed = false;
  for (int message = 0; message < 3; ++message) {
    std::string bytes = (message == 1 ? connector : acceptor).output();
    const std::string mask = input.piece(input.byte() % 4 == 0 ? bytes.size() : 0);
    for (size_t i = 0; i < mask.size(); ++i) {
      bytes[i] ^= mask[i];
      changed |= mask[i] != 0;
    }
    if (message == 1) changed_before_proof = changed;
    feed(message == 1 ? acceptor : connector, bytes, piece);
  }
  fuzz::require(acceptor.done() == !changed_before_proof, "the acceptor is wrong");
  fuzz::require(connector.done() == !changed, "the connector is wrong");
  require_over(acceptor);
  require_over(connector);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte() % 4;
  const size_t piece = 1 + input.byte();
  if (mode == 3)
    meddler(input, piece);
  else
    stranger(input, mode % 2 ? Role::acceptor : Role::connector, piece);
  return 0;
}
