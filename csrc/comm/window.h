// Memory of every rank of a group that the others write into, one-sided: the library's primitive
// with nothing around it.
#pragma once
#include <cstdint>
#include <vector>

#include "fabric.h"
#include "meet.h"

namespace eager::comm {

class Window {
 public:
  // Collective over `ranks` (ascending ranks of the fabric, this one among them); every rank gets
  // `bytes` of zeroed memory.  `id` and `exchange` as for Group; a window takes an id of its own.
  Window(Fabric&, std::vector<int> ranks, uint32_t id, const Rendezvous& exchange, size_t bytes,
         Duration timeout);
  ~Window();  // the caller knows that no rank writes any more
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  std::byte* data() const { return region_->base; }
  size_t size() const { return bytes_; }

  // Ranks below are those within `ranks`.
  // Writes into rank `to`'s memory and counts one arrival there when the bytes are visible.
  // On return the source may be changed.
  // Throws Error(invalid) if the range does not fit, Error(peer_lost).
  void put(const void* source, size_t length, size_t offset, int to);
  // Counts one arrival at `to`, after everything put there before.
  void signal(int to);
  // Waits for `count` arrivals from `from` beyond those waited for before.  One thread at a time
  // waits for one rank.
  void wait(int from, uint32_t count = 1);

 private:
  Waiting waiting(const char* op, uint64_t sequence) const;
  int peer(const char* op, int rank) const;

  Fabric& fabric_;
  const std::vector<int> ranks_;
  const uint32_t id_, counter_;
  const size_t bytes_;
  const Duration timeout_;
  const Region* region_;
  std::vector<Target> targets_;
  std::vector<uint32_t> seen_;
};

}  // namespace eager::comm
