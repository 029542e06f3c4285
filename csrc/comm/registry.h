// The regions of one rank: found by address for every collective.
#pragma once
#include <functional>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "link.h"
#include "memory.h"

namespace eager::comm {

// A region and what keeps its memory.
struct OwnedRegion : Registered {
  Segment segment;  // empty for adopted memory
  bool shared() const { return segment.mapping.base() != nullptr; }
};

// Thread-safe.  References stay valid until remove().
class Registry {
 public:
  // Throws Error(invalid) when it overlaps a region that is there, or when there are too many.
  const OwnedRegion& add(std::unique_ptr<OwnedRegion>);  // gives it its id
  // Throws Error(invalid) when it is none of these.
  std::unique_ptr<OwnedRegion> remove(const Region&);
  const OwnedRegion* find(const void* data, size_t length) const;  // that holds all of it, or null
  const OwnedRegion& get(const Region&) const;                     // as remove(), but leaves it

 private:
  using List = std::vector<std::unique_ptr<OwnedRegion>>;
  List::const_iterator place(const Region&) const;

  mutable std::shared_mutex mutex_;
  List by_address_;
  uint32_t next_id_ = 1;  // 0 are the counters
};

}  // namespace eager::comm
