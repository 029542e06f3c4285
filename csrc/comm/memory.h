// Memory that processes share: anonymous files (memfd), mapped.
#pragma once
#include <cstddef>
#include <cstdint>

#include "socket.h"

namespace eager::comm {

// Owns a mapping.
class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* base, size_t length) : base_(base), length_(length) {}
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), length_(std::exchange(other.length_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(length_, other.length_);
    return *this;
  }
  ~Mapping();
  std::byte* base() const { return base_; }
  size_t length() const { return length_; }  // whole pages

 private:
  std::byte* base_ = nullptr;
  size_t length_ = 0;
};

struct Segment {
  Mapping mapping;
  Fd fd;
};

size_t page_size();
size_t whole_pages(size_t length);  // rounded up; throws Error(invalid) when that overflows

// New zeroed memory in a memfd whose size is sealed: no process that has the descriptor can make
// the others' loads and stores fault.  `prefault`: its pages are there when this returns.  Large
// segments are aligned to huge pages, and ask for them where the system gives them to shared
// memory.  Throws Error(system) when there is no memory.
Segment make_segment(size_t length, bool prefault);

// Maps a segment that another process made, after checking that it is `length` bytes (rounded up
// to pages) and sealed.  `offset` is a multiple of the page size.  Throws Error(protocol) when the
// descriptor is anything else, Error(system).
Mapping map_segment(int fd, size_t length, size_t offset = 0);

// Makes the page tables of a mapping at once instead of fault by fault.  Only a hint.
void populate(const Mapping&);

// Memory that a forked child finds zeroed: one word that tells a process from its children.
class ForkGuard {
 public:
  ForkGuard();
  bool forked() const;  // this process is a child of the one that made the guard

 private:
  Mapping page_;
};

}  // namespace eager::comm
