#include <cstdlib>
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

namespace {

// Memory that is counted; release() frees it.
struct Provider {
  int made = 0, released = 0;
  size_t bytes = 0;
  bool empty = false;

  BlockSource source() { return {make, release, this}; }

 private:
  struct Handle {
    Provider* owner;
    void* base;
  };
  static void* make(void* context, size_t bytes, void** handle) {
    auto* p = static_cast<Provider*>(context);
    if (p->empty) return nullptr;
    ++p->made;
    p->bytes += bytes;
    void* base = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    *handle = new Handle{p, base};
    return base;
  }
  static void release(void* handle) {
    auto* h = static_cast<Handle*>(handle);
    ++h->owner->released;
    std::free(h->base);
    delete h;
  }
};

}  // namespace

TEST(allocator_takes_large_blocks_from_a_source) {
  Provider provider;
  const BlockSource source = provider.source();
  set_block_source(&source);
  std::vector<std::pair<void*, size_t>> blocks;
  deallocate(allocate(1000), 1000);
  deallocate(allocate(100 << 10), 100 << 10);
  CHECK(provider.made == 0);  // small ones never
  for (size_t bytes : {size_t(300) << 10, size_t(1) << 20, size_t(3) << 20, size_t(70) << 20,
                       size_t(2) << 20, size_t(260) << 10}) {
    auto* p = static_cast<char*>(allocate(bytes));
    for (size_t i = 0; i < bytes; i += 4096) p[i] = char(blocks.size());
    blocks.push_back({p, bytes});
  }
  CHECK(provider.made == 2);  // segments of 64 MiB, but for the block that is larger
  for (size_t b = 0; b < blocks.size(); ++b) {
    const char* p = static_cast<char*>(blocks[b].first);
    for (size_t i = 0; i < blocks[b].second; i += 4096) CHECK(p[i] == char(b));
  }
  // Freed blocks are cached, and given back by empty_cache().
  const auto again = blocks[3];
  deallocate(again.first, again.second);
  CHECK(allocate(again.second) == again.first);
  deallocate(again.first, again.second);
  empty_cache();
  CHECK(allocate(again.second) == again.first && provider.made == 2);

  // Blocks outlive the source; the segments go with the last of them.
  set_block_source(nullptr);
  CHECK(provider.released == 0);
  for (const auto& [p, bytes] : blocks) deallocate(p, bytes);
  empty_cache();
  CHECK(provider.released == provider.made);
  void* p = allocate(3 << 20);
  CHECK(provider.made == 2);
  deallocate(p, 3 << 20);
}

TEST(allocator_does_without_a_source_that_is_empty) {
  Provider provider;
  provider.empty = true;
  const BlockSource source = provider.source();
  set_block_source(&source);
  void* p = allocate(5 << 20);
  CHECK(p && provider.made == 0);
  deallocate(p, 5 << 20);
  set_block_source(nullptr);
}

TEST(allocator_packs_segments_again_and_again) {
  Provider provider;
  const BlockSource source = provider.source();
  set_block_source(&source);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::pair<void*, size_t>> blocks;
    for (int i = 0; i < 20; ++i) {
      const size_t bytes = (size_t(257) << 10) + size_t((i * 37 + round * 101) % 1500) * 1024;
      blocks.push_back({allocate(bytes), bytes});
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      for (size_t j = i + 1; j < blocks.size(); ++j) {
        auto *a = static_cast<char*>(blocks[i].first), *b = static_cast<char*>(blocks[j].first);
        CHECK(a + blocks[i].second <= b || b + blocks[j].second <= a);
      }
    }
    for (const auto& [p, bytes] : blocks) deallocate(p, bytes);
    empty_cache();
  }
  CHECK(provider.made == 1);
  set_block_source(nullptr);
  CHECK(provider.released == 1);
}
