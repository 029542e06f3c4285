#include "meet.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

Key to_key(const std::string& text, int peer) {
  Key key;
  if (text.size() != key.size()) {
    fail(ErrorKind::protocol, "meet", "rank " + std::to_string(peer) + " sent no key",
         std::to_string(key.size()) + " bytes", std::to_string(text.size()), "", peer);
  }
  std::memcpy(key.data(), text.data(), key.size());
  return key;
}

}  // namespace

Rendezvous exchange_through(Store& store, const std::string& name, int rank, int size) {
  return [&store, name, rank, size, round = 0](const std::string& mine) mutable {
    const std::string prefix = name + "/" + std::to_string(round++) + "/";
    store.set(prefix + std::to_string(rank), mine);
    std::vector<std::string> all;
    for (int r = 0; r < size; ++r) all.push_back(store.get(prefix + std::to_string(r)));
    return all;
  };
}

std::vector<Target> meet(Fabric& fabric, const std::vector<int>& ranks, const Region& mine,
                         const Rendezvous& exchange) {
  // One blob holds a key for every member: keys differ from peer to peer.
  std::string keys;
  for (int r : ranks) {
    const Key key = fabric.key(mine, r);
    keys.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  const auto all = exchange(keys);
  const auto self = std::find(ranks.begin(), ranks.end(), fabric.rank());
  if (self == ranks.end() || all.size() != ranks.size()) {
    fail(ErrorKind::invalid, "meet", "the ranks and the exchange do not fit",
         "this rank among " + std::to_string(ranks.size()) + " members",
         std::to_string(all.size()) + " answers");
  }
  const size_t at = size_t(self - ranks.begin()) * sizeof(Key);
  std::vector<Target> targets;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const bool whole = all[r].size() == sizeof(Key) * ranks.size();
    targets.push_back(fabric.import(
        ranks[r], to_key(whole ? all[r].substr(at, sizeof(Key)) : std::string(), ranks[r])));
  }
  return targets;
}

}  // namespace eager::comm
