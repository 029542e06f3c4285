#include "allocator.h"
#include "tensor.h"

namespace eager::core {
namespace {

// Small data lies behind its header in one block.
constexpr size_t kHeader = 64;
constexpr size_t kInlineMax = 4096;
static_assert(sizeof(Storage) <= kHeader);

char* inline_data(Storage* s) { return reinterpret_cast<char*>(s) + kHeader; }

}  // namespace

std::atomic<uint32_t> Storage::epochs{0};

Ref<Storage> Storage::allocate(size_t bytes, Device device) {
  if (device == Device::cpu && bytes <= kInlineMax) {
    auto* s = new (core::allocate(kHeader + bytes)) Storage;
    s->refs.store(1, std::memory_order_relaxed);
    s->data = inline_data(s);
    s->bytes = bytes;
    s->owned = s->joined = true;
    return Ref<Storage>::adopt(s);
  }
  auto s = Ref<Storage>(new (allocate_object(kHeader)) Storage);
  s->device = device;
  if (device == Device::cpu) {
    s->data = core::allocate(bytes);
    s->bytes = bytes;
    s->owned = true;
  }
  return s;
}

Ref<Storage> Storage::wrap(void* data, size_t bytes, void (*release)(void*), void* owner) {
  auto s = Ref<Storage>(new (allocate_object(kHeader)) Storage);
  s->data = data;
  s->bytes = bytes;
  s->release = release;
  s->owner = owner;
  return s;
}

void Storage::destroy(Storage* s) {
  const size_t bytes = s->bytes;
  // By the flag: a block of its own may follow the header by chance.
  if (s->joined) {
    s->~Storage();
    core::deallocate(s, kHeader + bytes);
    return;
  }
  if (s->owned) core::deallocate(s->data, bytes);
  if (s->release) s->release(s->owner);
  s->~Storage();
  deallocate_object(s, kHeader);
}

}  // namespace eager::core
