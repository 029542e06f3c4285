#include <cstring>
#include <thread>
#include <vector>

#include "core/allocator.h"
#include "test.h"

using namespace eager::core;

TEST(allocator_aligns_and_keeps_blocks_apart) {
  std::vector<std::pair<char*, size_t>> blocks;
  for (size_t bytes :
       {0, 1, 63, 64, 65, 1000, 1024, 1025, 5000, 65536, 65537, 1 << 20, (1 << 20) + 1, 3 << 20}) {
    for (int i = 0; i < 3; ++i) {
      char* p = static_cast<char*>(allocate(bytes));
      CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0);
      std::memset(p, int(blocks.size()), bytes);
      blocks.push_back({p, bytes});
    }
  }
  for (size_t b = 0; b < blocks.size(); ++b)
    for (size_t i = 0; i < blocks[b].second; i += 61) CHECK(blocks[b].first[i] == char(b));
  for (auto [p, bytes] : blocks) deallocate(p, bytes);
}

TEST(allocator_reuses_freed_blocks) {
  for (size_t bytes : {100, 10000, 200000, 5 << 20}) {
    void* p = allocate(bytes);
    deallocate(p, bytes);
    const AllocatorStats before = allocator_stats();
    void* q = allocate(bytes);
    CHECK(p == q);
    deallocate(q, bytes);
    const AllocatorStats after = allocator_stats();
    CHECK(after.system_allocations == before.system_allocations);
    CHECK(after.cache_hits == before.cache_hits + 1);
  }
}

TEST(allocator_counts) {
  reset_peak_stats();
  const AllocatorStats start = allocator_stats();
  void* a = allocate(1000);
  void* b = allocate(5 << 20);
  deallocate(a, 1000);
  const AllocatorStats s = allocator_stats();
  CHECK(s.allocated_bytes == start.allocated_bytes + (5 << 20));
  CHECK(s.peak_allocated_bytes == start.allocated_bytes + (5 << 20) + 1000);
  CHECK(s.allocations == start.allocations + 2);
  deallocate(b, 5 << 20);
  CHECK(allocator_stats().allocated_bytes == start.allocated_bytes);
  CHECK(allocator_stats().reserved_bytes >= 5 << 20);
  const int64_t reserved = allocator_stats().reserved_bytes;
  empty_cache();
  CHECK(allocator_stats().reserved_bytes <= reserved - (5 << 20));
}

TEST(allocator_takes_blocks_freed_by_other_threads) {
  std::vector<void*> blocks;
  const AllocatorStats start = allocator_stats();
  for (int round = 0; round < 3; ++round) {
    std::thread([&] {
      for (int i = 0; i < 5000; ++i) blocks.push_back(allocate(200));
    }).join();
    for (void* p : blocks) deallocate(p, 200);
    blocks.clear();
  }
  const AllocatorStats end = allocator_stats();
  CHECK(end.allocated_bytes == start.allocated_bytes);
  CHECK(end.reserved_bytes - start.reserved_bytes <= 4 << 20);
}

TEST(allocator_fails_with_an_error) {
  CHECK_FAILS(memory, allocate(size_t(1) << 60));
  CHECK_FAILS(memory, allocate(size_t(1) << 46));
  CHECK_FAILS(memory, Tensor::empty({int64_t(1) << 40, int64_t(1) << 40}, DType::f32));
  CHECK_FAILS(shape, Tensor::empty({2, -1}, DType::f32));
  CHECK(Tensor::empty({int64_t(1) << 40, 0, int64_t(1) << 40}, DType::f32)->numel == 0);
}
