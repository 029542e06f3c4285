// The table of transports, and the choice between them for a pair of ranks.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "link.h"
#include "mesh.h"
#include "shm.h"

namespace eager::comm {

class VerbsContext;

// What one rank offers; told to every peer.
struct Abilities {
  std::string forced;      // the transport that its user demands, or empty
  uint8_t verbs = 0;       // link layers of its active ports: 1 Ethernet, 2 InfiniBand
  std::string verbs_text;  // its ports, or why it has none
};

struct Choice {
  std::string transport;
  std::string reason;
};

// What both ranks of a pair come to, from the same facts.  `local`: they are joined by a Unix
// socket, so they share a host.  Throws Error(invalid) when a forced transport cannot be had.
Choice choose(const Abilities& lower, const Abilities& higher, bool local);

// Makes the links of one mesh.
class Transports {
 public:
  // Looks which transports there are.  Throws Error(invalid) for a name that is none.
  explicit Transports(const MeshOptions&);
  const Abilities& abilities() const { return abilities_; }
  // `regions`: of a peer on this host, else null.
  std::unique_ptr<PendingLink> prepare(const std::string& transport, const LinkOptions&,
                                       std::shared_ptr<PeerRegions> regions) const;

 private:
  const int size_;
  Abilities abilities_;
  std::shared_ptr<VerbsContext> verbs_;
};

}  // namespace eager::comm
