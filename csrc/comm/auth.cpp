#include "auth.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "frame.h"

namespace eager::comm {
namespace {

constexpr uint8_t kMagic[4] = {'E', 'J', 'A', '1'};
constexpr char kLabel[] = "eager-jit control channel, version 1";

enum Mode : uint8_t { kOpen = 0, kSecret = 1 };
enum Status : uint8_t { kAccepted = 0, kRefusedProof = 1, kRefusedMode = 2 };

Handshake::Nonce fresh_nonce() {
  Handshake::Nonce nonce;
  random_bytes(nonce.data(), nonce.size());
  return nonce;
}

}  // namespace

Handshake::Handshake(Role role, const Credentials& mine) : Handshake(role, mine, fresh_nonce()) {}

Handshake::Handshake(Role role, const Credentials& mine, const Nonce& nonce)
    : role_(role), mine_(mine), state_(role == Role::acceptor ? State::answer : State::hello) {
  Writer w;
  w.raw(kMagic, sizeof kMagic).u8(mine.secret.empty() ? kOpen : kSecret).u8(0).u16(0);
  w.u64(mine.identity).raw(nonce.data(), nonce.size());
  std::copy(w.bytes().begin(), w.bytes().end(), my_hello_.begin());
  if (role == Role::acceptor) out_ = w.take();
}

size_t Handshake::wanted() const {
  switch (state_) {
    case State::hello:
      return kHello - filled_;
    case State::answer:
      return kAnswer - filled_;
    case State::verdict:
      return kVerdict - filled_;
    default:
      return 0;
  }
}

size_t Handshake::take(const void* data, size_t length) {
  const size_t n = std::min(length, wanted());
  if (n == 0) return 0;
  std::memcpy(buffer_.data() + filled_, data, n);
  filled_ += n;
  // Somebody who speaks another protocol is recognised by his first bytes.
  if (state_ != State::verdict &&
      !std::equal(buffer_.begin(), buffer_.begin() + std::min(filled_, sizeof kMagic), kMagic)) {
    fail("the other side speaks another protocol");
    return n;
  }
  if (wanted() == 0) {
    message();
    filled_ = 0;
  }
  return n;
}

std::string Handshake::output() { return std::exchange(out_, std::string()); }

void Handshake::fail(const std::string& why) {
  state_ = State::failed;
  why_ = why;
}

// The acceptor tells the other side, which has at least spoken the protocol.
void Handshake::refuse(uint8_t status, const std::string& why) {
  out_.assign(kVerdict, '\0');
  out_[0] = static_cast<char>(status);
  fail(why);
}

bool Handshake::accept_hello() {
  std::copy_n(buffer_.begin(), kHello, peer_hello_.begin());
  Reader r(peer_hello_.data() + sizeof kMagic, kHello - sizeof kMagic);
  const uint8_t mode = r.u8();
  const bool zero = r.u8() == 0 && r.u16() == 0;
  peer_identity_ = r.u64();
  if (mode > kSecret || !zero) {
    fail("the other side speaks another version of the protocol");
    return false;
  }
  if (mode != (mine_.secret.empty() ? kOpen : kSecret)) {
    const std::string why = mode == kSecret ? "the other side has a secret and this one has none"
                                            : "this side has a secret and the other one has none";
    if (role_ == Role::acceptor)
      refuse(kRefusedMode, why);
    else
      fail(why);
    return false;
  }
  return true;
}

void Handshake::message() {
  switch (state_) {
    case State::hello: {  // the connector answers
      if (!accept_hello()) return;
      const Digest mine = proof(Role::connector);
      out_.assign(my_hello_.begin(), my_hello_.end());
      out_.append(mine.begin(), mine.end());
      state_ = State::verdict;
      return;
    }
    case State::answer: {  // the acceptor judges
      if (!accept_hello()) return;
      Digest theirs;
      std::copy_n(buffer_.begin() + kHello, theirs.size(), theirs.begin());
      if (!equal_digests(theirs, proof(Role::connector)))
        return refuse(kRefusedProof, "the other side does not know the secret of this one");
      const Digest mine = proof(Role::acceptor);
      out_.assign(kVerdict - mine.size(), '\0');
      out_.append(mine.begin(), mine.end());
      state_ = State::done;
      return;
    }
    case State::verdict: {
      if (buffer_[0] == kRefusedProof) return fail("the other side refused: it has another secret");
      if (buffer_[0] == kRefusedMode) return fail("the other side refused: it has no secret");
      Digest theirs;
      std::copy_n(buffer_.begin() + (kVerdict - theirs.size()), theirs.size(), theirs.begin());
      const bool accepted =
          std::all_of(buffer_.begin(), buffer_.begin() + (kVerdict - theirs.size()),
                      [](uint8_t b) { return b == kAccepted; });
      if (!accepted || !equal_digests(theirs, proof(Role::acceptor)))
        return fail("the other side does not know the secret of this one");
      state_ = State::done;
      return;
    }
    default:
      return;
  }
}

Digest Handshake::proof(Role prover) const {
  const bool acceptor = role_ == Role::acceptor;
  const auto& first = acceptor ? my_hello_ : peer_hello_;
  const auto& second = acceptor ? peer_hello_ : my_hello_;
  Writer w;  // all fields but the last have a fixed length
  w.raw(kLabel, sizeof kLabel).u8(static_cast<uint8_t>(prover));
  w.raw(first.data(), first.size()).raw(second.data(), second.size());
  w.raw(mine_.context.data(), mine_.context.size());
  return hmac_sha256(mine_.secret, w.bytes().data(), w.bytes().size());
}

void require_secret(const std::string& op, const std::string& secret, const Address& address) {
  if (!secret.empty() || address.loopback()) return;
  fail(ErrorKind::authentication, op, "without a secret only loopback is allowed",
       "a secret, or an address of loopback", address.text(),
       "the same EAGER_COMM_SECRET on all ranks (launchers set it)");
}

uint64_t authenticate(Socket& socket, Role role, const Credentials& mine, Deadline deadline) {
  const char* op = "authenticate";
  if (mine.secret.empty() && !socket.loopback()) require_secret(op, mine.secret, socket.peer());
  Handshake handshake(role, mine);
  std::array<char, 128> buffer;
  for (;;) {
    const std::string out = handshake.output();
    if (!out.empty()) socket.write(out.data(), out.size(), deadline, op);
    const size_t wanted = std::min(handshake.wanted(), buffer.size());
    if (wanted == 0) break;
    const size_t n = socket.read_some(buffer.data(), wanted, deadline, op);
    if (n == 0) comm::fail(ErrorKind::timeout, op, "no answer in time");
    handshake.take(buffer.data(), n);
  }
  if (handshake.failed())
    comm::fail(ErrorKind::authentication, op, handshake.why(), "", socket.peer().text(),
               "the same EAGER_COMM_SECRET on all ranks, and the address of this job");
  return handshake.peer_identity();
}

}  // namespace eager::comm
