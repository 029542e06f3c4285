#include "verbs_memory.h"

#include <cerrno>
#include <cstring>

namespace eager::comm::verbs {

Registration::~Registration() {
  for (ibv_mr* mr : of)
    if (mr) api.dereg_mr(mr);
}

std::shared_ptr<Registration> Memory::add(const Registered& region, int access, uint32_t devices,
                                          std::string* problem) {
  auto made = std::make_shared<Registration>(api_, devices_.size());
  made->begin = reinterpret_cast<uintptr_t>(region.base);
  made->length = region.length;
  made->device = region.device;
  bool dmabuf = region.device && region.dmabuf >= 0 && api_.reg_dmabuf_mr;
  for (size_t i = 0; i < devices_.size(); i++) {
    if (!(devices >> i & 1)) continue;
    errno = 0;
    made->of[i] = dmabuf ? api_.reg_dmabuf_mr(devices_[i].pd, 0, region.length, made->begin,
                                              region.dmabuf, access)
                         : api_.reg_mr(devices_[i].pd, region.base, region.length, access);
    if (made->of[i]) continue;
    if (problem) {
      *problem = devices_[i].name + " cannot register " + std::to_string(region.length) + " bytes" +
                 (region.device ? " of GPU memory" : "") + ": " + std::strerror(errno);
    }
    return nullptr;
  }
  return made;
}

void Memory::attach(const Registered& region) {
  if (region.length == 0) return;
  std::unique_lock lock(mutex_);
  uintptr_t begin = reinterpret_cast<uintptr_t>(region.base);
  auto at = regions_.find(begin);
  if (at != regions_.end()) {
    at->second.links++;
    return;
  }
  std::string problem;
  auto made = add(region, kAccessLocalWrite | kAccessRemoteWrite, ~0u, &problem);
  if (!made)
    fail(ErrorKind::system, "verbs", problem, "", "",
         region.device ? "load the driver that lends GPU memory to RDMA devices (nvidia-peermem), "
                         "or use a kernel and a library with dma-buf"
                       : "ulimit -l unlimited");
  regions_.emplace(begin, Attached{std::move(made), 1});
}

void Memory::detach(const Registered& region) {
  std::unique_lock lock(mutex_);
  auto at = regions_.find(reinterpret_cast<uintptr_t>(region.base));
  if (at != regions_.end() && --at->second.links == 0) regions_.erase(at);
}

Pinned Memory::find(const void* data, size_t length) const {
  uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  std::shared_lock lock(mutex_);
  auto at = regions_.upper_bound(begin);
  if (at == regions_.begin()) return nullptr;
  const Registration& region = *(--at)->second.memory;
  size_t offset = begin - region.begin;
  if (offset > region.length || length > region.length - offset) return nullptr;
  return at->second.memory;
}

Pinned Memory::borrow(const void* data, size_t length, uint32_t devices) {
  Range range(reinterpret_cast<uintptr_t>(data), length, devices);
  std::lock_guard lock(borrowing_);
  if (auto at = borrowed_.find(range); at != borrowed_.end()) {
    if (auto shared = at->second.lock()) return shared;
    borrowed_.erase(at);
  }
  if (borrowed_.size() >= 64) {  // forget those that are over
    for (auto at = borrowed_.begin(); at != borrowed_.end();)
      at = at->second.expired() ? borrowed_.erase(at) : std::next(at);
  }
  Registered source;
  source.base = const_cast<std::byte*>(static_cast<const std::byte*>(data));
  source.length = length;
  auto made = add(source, 0, devices, nullptr);
  if (made) borrowed_[range] = made;
  return made;
}

Pinned Memory::make(void* data, size_t length, int access, uint32_t devices) {
  Registered own;
  own.base = static_cast<std::byte*>(data);
  own.length = length;
  std::string problem;
  auto made = add(own, access, devices, &problem);
  if (!made) fail(ErrorKind::system, "verbs", problem, "", "", "ulimit -l unlimited");
  return made;
}

}  // namespace eager::comm::verbs
