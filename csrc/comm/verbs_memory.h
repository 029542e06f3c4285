// Memory that devices may read and write.
//
// Regions of the mesh are registered once, when the first link attaches them, and serve all links.
//
// Other source memory is registered for as long as a put from it is under way, and no longer:
// puts of the same range that overlap in time share one registration (one tensor to many peers).
// Keeping it beyond would be faster and wrong: a program can free that memory and map other pages
// at the same address, while the device still reads the old ones.  Until its put is sent, the
// caller must keep the memory anyway.  Large tensors lie in regions, so this is the rare case.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <tuple>
#include <vector>

#include "link.h"
#include "verbs_device.h"

namespace eager::comm::verbs {

// A range known to devices, until it is destroyed.
struct Registration {
  Registration(const Api& api, size_t devices) : api(api), of(devices) {}
  ~Registration();
  Registration(const Registration&) = delete;

  const Api& api;
  uintptr_t begin = 0;
  size_t length = 0;
  bool device = false;      // GPU memory: the CPU must not touch it
  std::vector<ibv_mr*> of;  // one per device of the context; null: not registered there
};
using Pinned = std::shared_ptr<const Registration>;

class Memory {
 public:
  Memory(const Api& api, const std::vector<Device>& devices) : api_(api), devices_(devices) {}

  // Counted per region; the first registers it.  Throws Error(system) when a device refuses.
  void attach(const Registered&);
  void detach(const Registered&);
  // The attached region that holds the range, or null.
  Pinned find(const void* data, size_t length) const;
  // Registers a put's source on the devices of the bit mask.  Null when they refuse.
  Pinned borrow(const void* data, size_t length, uint32_t devices);
  // Memory of a link's own.  Throws Error(system).
  Pinned make(void* data, size_t length, int access, uint32_t devices);

 private:
  struct Attached {
    std::shared_ptr<Registration> memory;
    int links;
  };
  // Null and `problem` when a device refuses.
  std::shared_ptr<Registration> add(const Registered&, int access, uint32_t devices,
                                    std::string* problem);

  const Api& api_;
  const std::vector<Device>& devices_;
  mutable std::shared_mutex mutex_;                       // guards what follows
  std::map<uintptr_t, Attached> regions_;                 // by first address; they do not overlap
  using Range = std::tuple<uintptr_t, size_t, uint32_t>;  // address, length, devices
  std::mutex borrowing_;  // guards what follows: find() need not wait for a registration
  std::map<Range, std::weak_ptr<Registration>> borrowed_;
};

}  // namespace eager::comm::verbs
