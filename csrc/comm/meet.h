// How ranks tell each other what one-sided writing needs to be known first.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "fabric.h"
#include "store.h"

namespace eager::comm {

// Sends a blob to all members and gives theirs, in order of rank.  Collective.
using Rendezvous = std::function<std::vector<std::string>(const std::string&)>;

// Through a store, which must outlive the result.  `name` is the same on all members and used once.
Rendezvous exchange_through(Store& store, const std::string& name, int rank, int size);

// Every member's region as this rank sees it, in order of `ranks` (ranks of the fabric, this one
// among them).  Collective.  Throws Error(invalid) if the exchange has not as many members,
// Error(protocol) if a member sent no key or one that cannot be its own.
std::vector<Target> meet(Fabric&, const std::vector<int>& ranks, const Region& mine,
                         const Rendezvous& exchange);

}  // namespace eager::comm
