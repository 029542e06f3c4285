// How the ranks of a mesh find each other and make their links.
//
//   1. Everyone publishes in the store where it listens.  The higher rank of each pair connects
//      and both authenticate: the control connection.
//   2. hello: what each can do.  Both choose the same transport from the same facts.
//   3. offer: how to reach the link that each prepared.  The links are joined.
//   4. ready, when all links of a rank are joined.  The mesh exists when everyone is ready.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "link.h"
#include "memory.h"
#include "mesh.h"
#include "shm.h"

namespace eager::comm {

struct Neighbour {
  std::unique_ptr<Control> control;      // null for this rank itself
  std::unique_ptr<Link> link;            // null for this rank itself
  std::shared_ptr<PeerRegions> regions;  // null unless it shares the host
  std::string host;
  std::string transport, reason;
};

// Collective.  One element per rank.  `counters(p)` is what rank p advances here; those of ranks
// on this host lie in `segment`.  Throws Error(timeout) naming who did not come, Error(peer_lost)
// when a rank went away meanwhile, Error(invalid) when no transport serves a pair, Error(protocol),
// Error(authentication).
std::vector<Neighbour> bootstrap(const MeshOptions&, Store&, const Segment& segment,
                                 const std::function<Counters*(int)>& counters, Stats*);

// Handles `region` and `withdraw` messages; false: it is another one.  Throws Error(protocol).
bool handle_region(Incoming&, PeerRegions*);
void announce_region(Control&, uint32_t id, size_t length, int fd);

}  // namespace eager::comm
