#include "registry.h"

#include <algorithm>
#include <mutex>

#include "shm.h"

namespace eager::comm {
namespace {

uintptr_t begin(const Region& r) { return reinterpret_cast<uintptr_t>(r.base); }
uintptr_t end(const Region& r) { return begin(r) + r.length; }

}  // namespace

const OwnedRegion& Registry::add(std::unique_ptr<OwnedRegion> r) {
  const std::lock_guard<std::shared_mutex> lock(mutex_);
  if (by_address_.size() >= PeerRegions::kLimit - 1 || next_id_ == UINT32_MAX)
    fail(ErrorKind::invalid, "allocate", "too many regions",
         "at most " + std::to_string(PeerRegions::kLimit - 1) + " at a time", "",
         "allocate fewer, larger regions");
  const auto after = std::lower_bound(by_address_.begin(), by_address_.end(), begin(*r),
                                      [](const auto& a, uintptr_t at) { return begin(*a) < at; });
  if ((after != by_address_.end() && begin(**after) < std::max(end(*r), begin(*r) + 1)) ||
      (after != by_address_.begin() && end(**std::prev(after)) > begin(*r)))
    fail(ErrorKind::invalid, "adopt", "the memory overlaps a region that is registered already");
  r->id = next_id_++;
  return **by_address_.insert(after, std::move(r));
}

Registry::List::const_iterator Registry::place(const Region& r) const {
  const auto it = std::lower_bound(by_address_.begin(), by_address_.end(), begin(r),
                                   [](const auto& a, uintptr_t at) { return begin(*a) < at; });
  if (it == by_address_.end() || (*it)->base != r.base || (*it)->id != r.id)
    fail(ErrorKind::invalid, "region", "not a region of this mesh, or released already");
  return it;
}

std::unique_ptr<OwnedRegion> Registry::remove(const Region& r) {
  const std::lock_guard<std::shared_mutex> lock(mutex_);
  const auto it = by_address_.begin() + (place(r) - by_address_.cbegin());
  std::unique_ptr<OwnedRegion> out = std::move(*it);
  by_address_.erase(it);
  return out;
}

const OwnedRegion& Registry::get(const Region& r) const {
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  return **place(r);
}

const OwnedRegion* Registry::find(const void* data, size_t length) const {
  const uintptr_t at = reinterpret_cast<uintptr_t>(data);
  const std::shared_lock<std::shared_mutex> lock(mutex_);
  auto it = std::upper_bound(by_address_.begin(), by_address_.end(), at,
                             [](uintptr_t a, const auto& b) { return a < begin(*b); });
  if (it == by_address_.begin()) return nullptr;
  const OwnedRegion& r = **--it;
  const size_t offset = at - begin(r);
  return offset <= r.length && length <= r.length - offset ? &r : nullptr;
}

}  // namespace eager::comm
