#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>

#include "error.h"

// Newer than the C library's headers may be.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

namespace eager::comm {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Reserves address space for a mapping that begins at a multiple of a huge page, so that the
// kernel can use huge pages for it.
Mapping map_shared(int fd, size_t length, size_t offset) {
  const size_t slack = length >= kHugePage && offset == 0 ? kHugePage : 0;
  void* at = nullptr;
  std::byte* reserved = nullptr;
  if (slack > 0) {
    void* p = mmap(nullptr, length + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) fail_errno("map", std::to_string(length) + " bytes", errno);
    reserved = static_cast<std::byte*>(p);
    const size_t low = (kHugePage - reinterpret_cast<uintptr_t>(p) % kHugePage) % kHugePage;
    at = reserved + low;
    if (low > 0) munmap(reserved, low);
    if (slack > low) munmap(reserved + low + length, slack - low);
  }
  void* p = mmap(at, length, PROT_READ | PROT_WRITE, MAP_SHARED | (at ? MAP_FIXED : 0), fd,
                 static_cast<off_t>(offset));
  if (p == MAP_FAILED) {
    const int number = errno;
    if (at) munmap(at, length);
    fail_errno("map", std::to_string(length) + " bytes of shared memory", number);
  }
  if (slack > 0) madvise(p, length, MADV_HUGEPAGE);
  return Mapping(static_cast<std::byte*>(p), length);
}

}  // namespace

Mapping::~Mapping() {
  if (base_) munmap(base_, length_);
}

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t whole_pages(size_t length) {
  const size_t page = page_size();
  if (length > SIZE_MAX / 4)
    fail(ErrorKind::invalid, "allocate", "too long", "", std::to_string(length) + " bytes");
  return (length + page - 1) / page * page;
}

Segment make_segment(size_t length, bool prefault) {
  const size_t bytes = whole_pages(length);
  // A file may be longer than all memory: the process would be killed when it writes the pages.
  const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page_size();
  if (prefault && bytes > memory)
    fail(ErrorKind::system, "allocate", "not enough memory",
         "at most " + std::to_string(memory) + " bytes", std::to_string(length) + " bytes");
  Segment out;
  out.fd = Fd(memfd_create("eager", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!out.fd) fail_errno("allocate", "memfd_create", errno);
  if (ftruncate(out.fd.get(), static_cast<off_t>(bytes)) != 0)
    fail_errno("allocate", std::to_string(length) + " bytes of shared memory", errno);
  if (fcntl(out.fd.get(), F_ADD_SEALS, kSeals) != 0)
    fail_errno("allocate", "sealing shared memory", errno);
  out.mapping = map_shared(out.fd.get(), bytes, 0);
  if (prefault && madvise(out.mapping.base(), bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == ENOMEM || errno == EFAULT)
      fail_errno("allocate", std::to_string(length) + " bytes of shared memory", ENOMEM);
    // A kernel before 5.14: a load from each page makes it.
    for (size_t i = 0; i < bytes; i += page_size())
      static_cast<void>(*static_cast<volatile std::byte*>(out.mapping.base() + i));
  }
  return out;
}

Mapping map_segment(int fd, size_t length, size_t offset) {
  struct stat info{};
  if (fstat(fd, &info) != 0) fail_errno("map", "fstat of a peer's memory", errno);
  const size_t bytes = whole_pages(length);
  const int seals = fcntl(fd, F_GET_SEALS);
  if (!S_ISREG(info.st_mode) || seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    fail(ErrorKind::protocol, "map", "a peer passed a descriptor that is no sealed memory");
  const size_t size = static_cast<size_t>(info.st_size);
  if (length == 0 || offset % page_size() != 0 || offset > size || bytes > size - offset)
    fail(ErrorKind::protocol, "map", "a peer's memory is shorter than it said",
         std::to_string(bytes) + " bytes at " + std::to_string(offset),
         std::to_string(size) + " bytes");
  return map_shared(fd, bytes, offset);
}

void populate(const Mapping& m) { madvise(m.base(), m.length(), MADV_POPULATE_WRITE); }

ForkGuard::ForkGuard() {
  const size_t bytes = page_size();
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail_errno("map", "a page", errno);
  page_ = Mapping(static_cast<std::byte*>(p), bytes);
  madvise(p, bytes, MADV_WIPEONFORK);
  *page_.base() = std::byte{1};
}

bool ForkGuard::forked() const {
  return *static_cast<volatile std::byte*>(page_.base()) == std::byte{0};
}

}  // namespace eager::comm
