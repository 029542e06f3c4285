// Links between ranks of one host: both map the other's memory, so that a put is a memcpy and the
// arrival counter an atomic add.
#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>

#include "link.h"
#include "memory.h"

namespace eager::comm {

// The memory that one peer has announced over the control connection, mapped.  Pages are not
// touched before somebody imports them.  Thread-safe.
class PeerRegions {
 public:
  static constexpr size_t kLimit = 16384;  // regions of one peer at a time
  // The segment of a rank's arrival counters, of all its peers, one Counters after another.
  static constexpr uint32_t kCountersRegion = 0;

  // Throws Error(protocol) when the announcement cannot be true.
  void announce(uint32_t id, size_t length, const Fd&);
  void withdraw(uint32_t id);
  // Waits for the announcement.  Throws Error(protocol) when the length is not the announced one
  // or the region is withdrawn or does not come in time, Error(peer_lost) after close().
  std::byte* get(uint32_t id, size_t length, Deadline);
  void close();

 private:
  struct Entry {
    Mapping mapping;
    size_t length;
    bool populated;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint32_t, Entry> regions_;
  uint32_t next_ = 0;  // numbers are announced in ascending order
  bool closed_ = false;
};

// `size`: of the mesh.
std::unique_ptr<PendingLink> prepare_shm(const LinkOptions&, int size,
                                         std::shared_ptr<PeerRegions>);

}  // namespace eager::comm
