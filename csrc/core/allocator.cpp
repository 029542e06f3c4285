#include "allocator.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "error.h"
#include "segments.h"
#include "threadlocal.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace eager::core {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t(2) << 20;
constexpr size_t kSmallest = 64;
constexpr size_t kClassMax = size_t(1) << 20;  // larger blocks have no class
constexpr size_t kCarveMax = 64 << 10;         // blocks up to here are cut from shared chunks
constexpr size_t kChunk = kHugePage;
constexpr size_t kSourced = 256 << 10;  // blocks from here on come from the block source
constexpr int kClasses = 16 + 4 * 10;

int size_class(size_t bytes) {
  if (bytes <= 1024) return bytes ? int((bytes - 1) / kSmallest) : 0;
  const int log = 63 - __builtin_clzll(bytes - 1);
  return 16 + (log - 10) * 4 + int((bytes - 1) >> (log - 2) & 3);
}

size_t class_bytes(int c) {
  if (c < 16) return size_t(c + 1) * kSmallest;
  const int log = 10 + (c - 16) / 4;
  return size_t(5 + (c - 16) % 4) << (log - 2);
}

// Size of the mapping for a block without class: eight sizes per doubling, so that a slightly
// different request can reuse it.
size_t large_bytes(size_t bytes) {
  const size_t step = std::max(kPage, size_t(1) << (60 - __builtin_clzll(bytes - 1)));
  return (bytes + step - 1) / step * step;
}

struct FreeBlock {
  FreeBlock* next;
};

// A counter written by one thread and read by any.
struct Counter {
  std::atomic<int64_t> value{0};
  int64_t get() const { return value.load(std::memory_order_relaxed); }
  void set(int64_t n) { value.store(n, std::memory_order_relaxed); }
  void add(int64_t n) { set(get() + n); }
};

struct Bin {
  FreeBlock* head = nullptr;
  uint32_t count = 0, limit = 0;
};

struct Cache {
  Bin bins[kClasses];
  // Since the last flush to the central statistics.
  Counter bytes, peak, allocations;
};

struct Central {
  std::mutex mutex;
  FreeBlock* bins[kClasses] = {};
  char *chunk = nullptr, *chunk_end = nullptr;
  std::map<size_t, std::vector<void*>> large;  // free mappings by size
  size_t large_cached = 0;
  Segments segments;
  std::vector<Cache*> caches;
  int64_t bytes = 0, peak = 0, reserved = 0, allocations = 0, system = 0;
};

// Never destroyed: tensors may be freed by static destructors and by threads that outlive main.
Central& central() {
  static Central* c = [] {
    auto* made = new Central;
    // A child process must not inherit the mutex locked by a thread that it does not have.
    pthread_atfork([] { central().mutex.lock(); }, [] { central().mutex.unlock(); },
                   [] {
                     central().segments.make_private();
                     central().mutex.unlock();
                   });
    return made;
  }();
  return *c;
}

using Lock = std::lock_guard<std::mutex>;

// The lock of what may leave segments unused: they are released after it.
class SegmentsLock {
 public:
  explicit SegmentsLock(Central& c) : central_(c) { c.mutex.lock(); }
  ~SegmentsLock() {
    const auto unused = central_.segments.take_unused();
    central_.mutex.unlock();
    for (const Segments::Unused& u : unused) u.release(u.handle);
  }
  SegmentsLock(const SegmentsLock&) = delete;

 private:
  Central& central_;
};

// Cached mappings beyond this are given back at once.
size_t large_cache_limit() {
  static const size_t limit = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) / 4;
  return limit;
}

// --- the system's memory; the mutex is held --------------------------------------------------

void* map(Central& c, size_t bytes, size_t alignment, bool sourced) {
  if (sourced && bytes >= kSourced) {
    if (void* p = c.segments.take(bytes)) {
      c.reserved += int64_t(bytes);
      ++c.system;
      return p;
    }
  }
  const size_t extra = alignment > kPage ? alignment : 0;
  void* p =
      mmap(nullptr, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  if (extra) {
    char* begin = static_cast<char*>(p);
    char* aligned = begin + (-reinterpret_cast<uintptr_t>(begin) & (alignment - 1));
    if (aligned > begin) munmap(begin, size_t(aligned - begin));
    char* end = begin + bytes + extra;
    if (end > aligned + bytes) munmap(aligned + bytes, size_t(end - (aligned + bytes)));
    p = aligned;
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
  }
  c.reserved += int64_t(bytes);
  ++c.system;
  return p;
}

void unmap(Central& c, void* p, size_t bytes) {
  // The address range may come back as something else's memory.
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
  if (!c.segments.give_back(p, bytes)) munmap(p, bytes);
  c.reserved -= int64_t(bytes);
}

void release_cached(Central& c) {
  for (int k = size_class(kCarveMax) + 1; k < kClasses; ++k) {
    while (FreeBlock* b = c.bins[k]) {
      c.bins[k] = b->next;
      unmap(c, b, class_bytes(k));
    }
  }
  for (auto& [bytes, blocks] : c.large)
    for (void* p : blocks) unmap(c, p, bytes);
  c.large.clear();
  c.large_cached = 0;
}

void* map_or_release(Central& c, size_t bytes, size_t alignment, bool sourced = true) {
  void* p = map(c, bytes, alignment, sourced);
  if (!p) {
    release_cached(c);
    p = map(c, bytes, alignment, sourced);
  }
  return p;
}

// One block of class k from the central store; null when the system has no memory.
FreeBlock* central_block(Central& c, int k) {
  if (FreeBlock* b = c.bins[k]) {
    c.bins[k] = b->next;
    return b;
  }
  const size_t bytes = class_bytes(k);
  if (bytes > kCarveMax) return static_cast<FreeBlock*>(map_or_release(c, bytes, kPage));
  if (size_t(c.chunk_end - c.chunk) < bytes) {
    // The rest of the old chunk is cut into the largest blocks that fit, so nothing is lost.
    while (size_t left = size_t(c.chunk_end - c.chunk)) {
      int fit = size_class(left);
      if (class_bytes(fit) > left) --fit;
      auto* b = reinterpret_cast<FreeBlock*>(c.chunk);
      c.chunk += class_bytes(fit);
      ASAN_UNPOISON_MEMORY_REGION(b, sizeof(FreeBlock));
      b->next = c.bins[fit];
      c.bins[fit] = b;
    }
    c.chunk = static_cast<char*>(map_or_release(c, kChunk, kHugePage, false));
    c.chunk_end = c.chunk ? c.chunk + kChunk : nullptr;
    if (!c.chunk) return nullptr;
    ASAN_POISON_MEMORY_REGION(c.chunk, kChunk);
  }
  auto* b = reinterpret_cast<FreeBlock*>(c.chunk);
  c.chunk += bytes;
  ASAN_UNPOISON_MEMORY_REGION(b, sizeof(FreeBlock));
  return b;
}

// --- the thread's lists ----------------------------------------------------------------------

EAGER_THREAD_LOCAL(static, Cache*, cache);
EAGER_THREAD_LOCAL(static, bool, exiting);

void flush_stats(Central& c, Cache& t) {
  c.peak = std::max(c.peak, c.bytes + t.peak.get());
  c.bytes += t.bytes.get();
  c.allocations += t.allocations.get();
  for (Counter* n : {&t.bytes, &t.peak, &t.allocations}) n->set(0);
}

// Moves blocks beyond `keep` to the central store.
void spill(Central& c, Cache& t, int k, uint32_t keep) {
  Bin& bin = t.bins[k];
  while (bin.count > keep) {
    FreeBlock* b = bin.head;
    bin.head = b->next;
    --bin.count;
    b->next = c.bins[k];
    c.bins[k] = b;
  }
}

struct CacheOwner {
  ~CacheOwner() {
    Central& c = central();
    Lock lock(c.mutex);
    for (int k = 0; k < kClasses; ++k) spill(c, *cache, k, 0);
    flush_stats(c, *cache);
    c.caches.erase(std::find(c.caches.begin(), c.caches.end(), cache));
    delete cache;
    cache = nullptr;
    exiting = true;  // later frees of this thread go to the central store
  }
};

// The calling thread's cache; null while the thread exits.
Cache* thread_cache() {
  if (!cache && !exiting) {
    cache = new Cache;
    for (int k = 0; k < kClasses; ++k) {
      cache->bins[k].limit =
          uint32_t(std::clamp((size_t(4) << 20) / class_bytes(k), size_t(4), size_t(1024)));
    }
    {
      Lock lock(central().mutex);
      central().caches.push_back(cache);
    }
    static thread_local CacheOwner owner;
    (void)&owner;
  }
  return cache;
}

__attribute__((noinline)) void* refill(int k) {
  Cache* t = thread_cache();
  Central& c = central();
  Lock lock(c.mutex);
  FreeBlock* first = central_block(c, k);
  if (!t || !first) return first;
  flush_stats(c, *t);
  Bin& bin = t->bins[k];
  // A batch saves trips for small blocks; large ones are only taken when asked for.
  const size_t batch = std::min<size_t>(bin.limit / 2, (32 << 10) / class_bytes(k));
  for (size_t i = 0; i < batch; ++i) {
    FreeBlock* b = central_block(c, k);
    if (!b) break;
    b->next = bin.head;
    bin.head = b;
    ++bin.count;
  }
  return first;
}

__attribute__((noinline)) void give_back(FreeBlock* b, int k) {
  Cache* t = thread_cache();
  Central& c = central();
  Lock lock(c.mutex);
  if (t) {
    Bin& bin = t->bins[k];
    b->next = bin.head;
    bin.head = b;
    ++bin.count;
    spill(c, *t, k, bin.limit / 2);
    flush_stats(c, *t);
  } else {
    b->next = c.bins[k];
    c.bins[k] = b;
  }
}

inline void* take(int k) {
  if (cache) {
    Bin& bin = cache->bins[k];
    if (FreeBlock* b = bin.head) {
      bin.head = b->next;
      --bin.count;
      return b;
    }
  }
  return refill(k);
}

inline void put(void* p, int k) {
  auto* b = static_cast<FreeBlock*>(p);
  if (cache) {
    Bin& bin = cache->bins[k];
    if (bin.count < bin.limit) {
      b->next = bin.head;
      bin.head = b;
      ++bin.count;
      return;
    }
  }
  give_back(b, k);
}

void count(int64_t bytes, int64_t allocations) {
  if (Cache* t = thread_cache()) {
    t->bytes.add(bytes);
    t->allocations.add(allocations);
    if (t->bytes.get() > t->peak.get()) t->peak.set(t->bytes.get());
  } else {
    Central& c = central();
    Lock lock(c.mutex);
    c.bytes += bytes;
    c.allocations += allocations;
    c.peak = std::max(c.peak, c.bytes);
  }
}

void* take_large(size_t bytes) {
  const size_t size = large_bytes(bytes);
  Central& c = central();
  Lock lock(c.mutex);
  auto found = c.large.find(size);
  if (found != c.large.end() && !found->second.empty()) {
    void* p = found->second.back();
    found->second.pop_back();
    c.large_cached -= size;
    return p;
  }
  return map_or_release(c, size, kHugePage);
}

void put_large(void* p, size_t bytes) {
  const size_t size = large_bytes(bytes);
  Central& c = central();
  SegmentsLock lock(c);
  if (c.large_cached + size > large_cache_limit()) return unmap(c, p, size);
  c.large[size].push_back(p);
  c.large_cached += size;
}

[[noreturn]] void out_of_memory(size_t bytes) {
  fail(ErrorKind::memory, "allocate", "the system has no memory left for this tensor",
       std::to_string(bytes) + " bytes", "out of memory",
       "free tensors that are no longer needed, or use smaller batches");
}

}  // namespace

void* allocate(size_t bytes) {
  // More than an address space holds would overflow the rounding below.
  if (bytes > size_t(1) << 47) out_of_memory(bytes);
  const bool classed = bytes <= kClassMax;
  void* p = classed ? take(size_class(bytes)) : take_large(bytes);
  if (!p) out_of_memory(bytes);
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
  count(int64_t(bytes), 1);
  return p;
}

void deallocate(void* p, size_t bytes) noexcept {
  count(-int64_t(bytes), 0);
  if (bytes <= kClassMax) {
    const int k = size_class(bytes);
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(p) + sizeof(FreeBlock),
                              class_bytes(k) - sizeof(FreeBlock));
    ASAN_UNPOISON_MEMORY_REGION(p, sizeof(FreeBlock));
    put(p, k);
  } else {
    ASAN_POISON_MEMORY_REGION(p, large_bytes(bytes));
    put_large(p, bytes);
  }
}

void* allocate_object(size_t bytes) {
  void* p = take(size_class(bytes));
  if (!p) out_of_memory(bytes);
  ASAN_UNPOISON_MEMORY_REGION(p, bytes);
  return p;
}

void deallocate_object(void* p, size_t bytes) noexcept {
  const int k = size_class(bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(p) + sizeof(FreeBlock),
                            class_bytes(k) - sizeof(FreeBlock));
  put(p, k);
}

AllocatorStats allocator_stats() {
  Central& c = central();
  Lock lock(c.mutex);
  if (cache) flush_stats(c, *cache);
  AllocatorStats s{c.bytes, c.peak, c.reserved, c.allocations, 0, c.system};
  for (const Cache* t : c.caches) {
    s.allocated_bytes += t->bytes.get();
    s.allocations += t->allocations.get();
  }
  s.cache_hits = std::max<int64_t>(0, s.allocations - s.system_allocations);
  s.peak_allocated_bytes = std::max(s.peak_allocated_bytes, s.allocated_bytes);
  return s;
}

void reset_peak_stats() {
  Central& c = central();
  Lock lock(c.mutex);
  if (cache) flush_stats(c, *cache);
  c.peak = c.bytes;
}

void empty_cache() {
  Central& c = central();
  SegmentsLock lock(c);
  if (cache)
    for (int k = 0; k < kClasses; ++k) spill(c, *cache, k, 0);
  release_cached(c);
}

void set_block_source(const BlockSource* source) {
  empty_cache();
  Central& c = central();
  SegmentsLock lock(c);
  c.segments.set_source(source);
}

}  // namespace eager::core
