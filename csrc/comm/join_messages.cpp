#include "join_messages.h"

#include "frame.h"
#include "link.h"
#include "tcp.h"

namespace eager::comm {
namespace {

constexpr size_t kName = 256;        // bytes of a host's name or address
constexpr size_t kLocalName = 100;   // of a Unix socket's
constexpr size_t kTransport = 16;    // of a transport's
constexpr size_t kVerbsText = 1024;  // of what is said about verbs

}  // namespace

std::string Card::encode() const {
  return Writer().string(host).string(address).string(local_name).u16(port).take();
}

Card Card::decode(const std::string& bytes) {
  Reader r(bytes);
  Card c;
  c.host = r.string(kName);
  c.address = r.string(kName);
  c.local_name = r.string(kLocalName);
  c.port = r.u16();
  r.end();
  return c;
}

std::string Hello::encode() const {
  return Writer()
      .u32(version)
      .string(host)
      .string(abilities.forced)
      .u8(abilities.verbs)
      .string(abilities.verbs_text.substr(0, kVerbsText))
      .take();
}

Hello Hello::decode(const std::string& bytes) {
  Reader r(bytes);
  Hello h;
  h.version = r.u32();
  if (h.version != kVersion) return h;
  h.host = r.string(kName);
  h.abilities.forced = r.string(kTransport);
  h.abilities.verbs = r.u8();
  h.abilities.verbs_text = r.string(kVerbsText);
  r.end();
  return h;
}

std::string Proposal::encode() const { return Writer().string(transport).string(offer).take(); }

Proposal Proposal::decode(const std::string& bytes) {
  Reader r(bytes);
  Proposal p;
  p.transport = r.string(kTransport);
  p.offer = r.string(kMaxOffer);
  r.end();
  return p;
}

std::string TcpOffer::encode(bool listens) const {
  Writer w;
  w.u8(version);
  if (listens) w.string(address).u16(port).u8(sockets).string(token);
  return w.take();
}

TcpOffer TcpOffer::decode(const std::string& bytes, bool listens) {
  Reader r(bytes);
  TcpOffer o;
  o.version = r.u8();
  if (o.version != kVersion) return o;
  if (listens) {
    o.address = r.string(kName);
    o.port = r.u16();
    o.sockets = r.u8();
    o.token = r.string(kToken);
    if (o.sockets < 1 || o.sockets > kTcpSockets || o.token.size() != kToken || o.port == 0)
      fail(ErrorKind::protocol, "tcp", "this is no offer of a tcp link");
  }
  r.end();
  return o;
}

}  // namespace eager::comm
