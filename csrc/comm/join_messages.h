// What ranks tell each other while they join.  decode() takes exactly what encode() gives, with
// every string within its limit, and throws Error(protocol) for anything else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "transports.h"

namespace eager::comm {

// Published in the store: where a rank listens.
struct Card {
  std::string host, address, local_name;
  uint16_t port = 0;

  std::string encode() const;
  static Card decode(const std::string&);
};

// The first message: what a rank can do.
struct Hello {
  static constexpr uint32_t kVersion = 1;
  uint32_t version = kVersion;
  std::string host;
  Abilities abilities;

  std::string encode() const;
  // Of another version, that number is all that can be read.
  static Hello decode(const std::string&);
};

// The second: which transport it has chosen, and that transport's own offer.
struct Proposal {
  std::string transport, offer;

  std::string encode() const;
  static Proposal decode(const std::string&);
};

// The offer of a TCP link: where the lower rank listens; of the higher one, the version alone.
struct TcpOffer {
  static constexpr uint8_t kVersion = 1;
  static constexpr size_t kToken = 32;
  uint8_t version = kVersion;
  std::string address;
  uint16_t port = 0;
  uint8_t sockets = 0;
  std::string token;

  std::string encode(bool listens) const;
  // Of another version, that number is all that can be read.
  static TcpOffer decode(const std::string&, bool listens);
};

}  // namespace eager::comm
