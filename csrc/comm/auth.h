// Two processes prove to each other that they know one secret, before anything else is read.
//
//   acceptor -> connector   hello    magic, mode, identity, nonce             48 bytes
//   connector -> acceptor   answer   magic, mode, identity, nonce, proof      80 bytes
//   acceptor -> connector   verdict  status, proof                            40 bytes
//
// proof = HMAC-SHA256(secret, label, role of the prover, both hellos, context).  Both nonces are
// fresh, so that nothing recorded is worth anything later; the role keeps either side from getting
// its own proof reflected; identities and context are bound by the proofs.  The acceptor proves
// nothing to somebody who has not proved himself: strangers get nothing to try secrets on.
//
// What follows is neither encrypted nor signed: the handshake keeps strangers out, it does not
// protect from somebody who can change packets on the way.
//
// An empty secret is an open door: the same handshake with an empty key, on loopback only.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "fabric.h"
#include "sha256.h"
#include "socket.h"

namespace eager::comm {

enum class Role : uint8_t { connector = 1, acceptor = 2 };

struct Credentials {
  std::string secret;
  std::string context;    // what the connection is for; both sides must say the same
  uint64_t identity = 0;  // told to the other side, e.g. a rank
};

// The handshake of one side as a state machine: bytes in, bytes out, no I/O, and no memory beyond
// a fixed buffer whatever comes.
class Handshake {
 public:
  using Nonce = std::array<uint8_t, 32>;

  Handshake(Role, const Credentials&);                // with a random nonce
  Handshake(Role, const Credentials&, const Nonce&);  // with this one (tests)

  // How many bytes of the other side are needed next: 0 when it is over.
  size_t wanted() const;
  // Takes at most wanted() bytes and returns how many; what follows the handshake is not touched.
  size_t take(const void* data, size_t length);
  // What to send now, each byte once.  To be sent also when the handshake failed: it says why.
  std::string output();

  bool done() const { return state_ == State::done; }
  bool failed() const { return state_ == State::failed; }
  const std::string& why() const { return why_; }            // for people; never says the secret
  uint64_t peer_identity() const { return peer_identity_; }  // once done

 private:
  enum class State { hello, answer, verdict, done, failed };
  static constexpr size_t kHello = 48, kAnswer = 80, kVerdict = 40;

  void message();
  bool accept_hello();
  void refuse(uint8_t status, const std::string& why);
  void fail(const std::string& why);
  Digest proof(Role) const;

  Role role_;
  Credentials mine_;
  std::array<uint8_t, kHello> my_hello_{}, peer_hello_{};
  std::array<uint8_t, kAnswer> buffer_{};
  size_t filled_ = 0;
  State state_;
  std::string out_, why_;
  uint64_t peer_identity_ = 0;
};

// Throws Error(authentication) when there is no secret and the address is not loopback.
void require_secret(const std::string& op, const std::string& secret, const Address&);

// The handshake over a connected socket.  Reads no byte beyond it.  Returns the other side's
// identity.  Throws Error(authentication) when the proof is wrong, when the other side speaks
// something else or when there is no secret off loopback; Error(timeout); and Error(peer_lost)
// (peer -1) when it hangs up.
uint64_t authenticate(Socket&, Role, const Credentials&, Deadline);

}  // namespace eager::comm
