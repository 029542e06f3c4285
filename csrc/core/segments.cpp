#include "segments.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace eager::core {
namespace {

constexpr size_t kSmallest = size_t(64) << 20, kLargest = size_t(256) << 20;
constexpr size_t kPage = 4096, kHugePage = size_t(2) << 20;

size_t rounded(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

// First fit.  Blocks of a huge page and more begin at one, if the system has them here.
void* Segments::cut(Segment& s, size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : kPage;
  for (auto range = s.free.begin(); range != s.free.end(); ++range) {
    const auto [offset, length] = *range;
    const size_t skip = -reinterpret_cast<uintptr_t>(s.base + offset) & (alignment - 1);
    if (length < bytes || length - bytes < skip) continue;
    const size_t begin = offset + skip, rest = length - skip - bytes;
    if (skip) {
      range->second = skip;
    } else {
      s.free.erase(range);
    }
    if (rest) s.free[begin + bytes] = rest;
    return s.base + begin;
  }
  return nullptr;
}

void* Segments::take(size_t bytes) {
  if (!source_.allocate) return nullptr;
  bytes = rounded(bytes);
  size_t total = 0;
  for (auto& s : list_) {
    if (!s->current) continue;
    total += s->bytes;
    if (void* p = cut(*s, bytes)) return p;
  }
  // Segments grow with what there is, so that there are few.
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;  // the source aligns to pages
  const size_t size = std::max(bytes + slack, std::clamp(total, kSmallest, kLargest));
  auto made = std::make_unique<Segment>();
  made->base = static_cast<char*>(source_.allocate(source_.context, size, &made->handle));
  if (!made->base) return nullptr;
  made->bytes = size;
  made->release = source_.release;
  made->current = true;
  made->free[0] = size;
  void* p = cut(*made, bytes);
  const auto after = [](const std::unique_ptr<Segment>& a, const std::unique_ptr<Segment>& b) {
    return a->base < b->base;
  };
  list_.insert(std::upper_bound(list_.begin(), list_.end(), made, after), std::move(made));
  return p;
}

bool Segments::give_back(void* p, size_t bytes) {
  char* const at = static_cast<char*>(p);
  auto s = std::upper_bound(list_.begin(), list_.end(), at,
                            [](char* a, const std::unique_ptr<Segment>& b) { return a < b->base; });
  if (s == list_.begin()) return false;
  --s;
  if (at >= (*s)->base + (*s)->bytes) return false;
  auto& free = (*s)->free;
  auto range = free.emplace(size_t(at - (*s)->base), rounded(bytes)).first;
  const auto next = std::next(range);
  if (next != free.end() && range->first + range->second == next->first) {
    range->second += next->second;
    free.erase(next);
  }
  if (range != free.begin()) {
    const auto before = std::prev(range);
    if (before->first + before->second == range->first) {
      before->second += range->second;
      free.erase(range);
    }
  }
  drop_if_unused(s);
  return true;
}

void Segments::drop_if_unused(List::iterator s) {
  const bool whole = (*s)->free.size() == 1 && (*s)->free.begin()->second == (*s)->bytes;
  if (!whole || (*s)->current) return;
  if ((*s)->release) {
    unused_.push_back({(*s)->handle, (*s)->release});
  } else {
    munmap((*s)->base, (*s)->bytes);
  }
  list_.erase(s);
}

void Segments::set_source(const BlockSource* source) {
  source_ = source ? *source : BlockSource{};
  for (size_t i = list_.size(); i-- > 0;) {
    list_[i]->current = false;
    drop_if_unused(list_.begin() + ptrdiff_t(i));
  }
}

void Segments::make_private() {
  source_ = {};
  for (auto& s : list_) {
    s->current = false;
    s->release = nullptr;  // the handle is the parent's business
    void* copy =
        mmap(nullptr, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) continue;  // then the child shares what it has not room for
    size_t at = 0;
    for (const auto& [offset, length] : s->free) {
      std::memcpy(static_cast<char*>(copy) + at, s->base + at, offset - at);
      at = offset + length;
    }
    std::memcpy(static_cast<char*>(copy) + at, s->base + at, s->bytes - at);
    mremap(copy, s->bytes, s->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, s->base);
  }
}

}  // namespace eager::core
