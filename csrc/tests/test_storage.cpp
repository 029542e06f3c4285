// Storage: a header, and data in the same block or in another.
#include <future>
#include <vector>

#include "core/allocator.h"
#include "core/tensor.h"
#include "test.h"

using namespace eager::core;
using namespace eager::test;

namespace {

constexpr size_t kHeader = 64, kBytes = 5000;  // too much for one block with the header

const char* end_of(const Ref<Storage>& header) {
  return reinterpret_cast<const char*>(header.get()) + kHeader;
}

// Makes a storage whose data is a block of its own that happens to follow the header.
Ref<Storage> neighbours() {
  std::vector<Ref<Storage>> all;
  for (int i = 0; i < 2000; ++i) all.push_back(Storage::allocate(kBytes, Device::cpu));
  for (Ref<Storage>& header : all)
    for (Ref<Storage>& data : all) {
      if (end_of(header) != data->data || header == data) continue;
      // Free blocks are handed out again, the last one first.
      header = nullptr;
      data = nullptr;
      void* skipped = allocate_object(kHeader);
      Ref<Storage> made = Storage::allocate(kBytes, Device::cpu);
      deallocate_object(skipped, kHeader);
      return made;
    }
  return nullptr;
}

}  // namespace

TEST(storage_whose_data_follows_its_header_by_chance) {
  const auto test = [] {
    const int64_t before = allocator_stats().allocated_bytes;
    Ref<Storage> s = neighbours();
    CHECK(s && end_of(s) == s->data);
    s = nullptr;
    CHECK(allocator_stats().allocated_bytes == before);
  };
  std::async(std::launch::async, test).get();  // a thread whose lists are empty
}
