// The caching allocator behind Storage, and the free lists behind the core's small objects.
//
// Blocks up to 1 MiB come in size classes (multiples of 64 bytes up to 1 KiB, then four per
// doubling).  Each thread keeps free blocks of every class in plain linked lists, so that the
// usual allocation takes no lock and no atomic instruction; lists that grow long or run dry
// exchange batches with a central store under a mutex.  Larger blocks are mapped one by one,
// aligned to 2 MiB with huge pages asked for, and kept by size when freed.
#pragma once
#include <cstddef>
#include <cstdint>

namespace eager::core {

struct AllocatorStats {
  int64_t allocated_bytes, peak_allocated_bytes;  // handed out now, and the most so far
  int64_t reserved_bytes;                         // held from the system, cached blocks included
  int64_t allocations, cache_hits;                // hits: without asking the system
  int64_t system_allocations;
};

void* allocate(size_t bytes);  // 64-byte aligned; throws Error(memory)
void deallocate(void* p, size_t bytes) noexcept;
// Exact for what the calling thread did; other threads' last few KiB may be missing in the peak.
AllocatorStats allocator_stats();
void reset_peak_stats();
// Gives cached blocks back to the system: those of the calling thread and those in the central
// store.  Blocks up to 64 KiB share mappings and stay.
void empty_cache();

// Where the memory of large blocks (256 KiB and more) comes from instead of the system, in segments
// of at least 64 MiB.  csrc/bind gives memory that other processes can map.
struct BlockSource {
  // `bytes` of page-aligned memory, and what release() wants; null: none, the system's is taken.
  // Called with the allocator locked.
  void* (*allocate)(void* context, size_t bytes, void** handle) = nullptr;
  // Called, by any thread, when no block of a segment is in use and its source has been replaced.
  void (*release)(void* handle) = nullptr;
  void* context = nullptr;
};
// Null: the system's again.  Blocks handed out stay what they are; cached ones are given back.
// In a forked child there is no source, and segments are private copies.
void set_block_source(const BlockSource*);

// The same memory for the core's own objects (tensors, tape nodes), left out of the statistics.
void* allocate_object(size_t bytes);
void deallocate_object(void* p, size_t bytes) noexcept;

}  // namespace eager::core
