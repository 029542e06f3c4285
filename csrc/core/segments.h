// Large blocks cut out of memory that somebody else provides: see set_block_source (allocator.h).
#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "allocator.h"

namespace eager::core {

// Not thread-safe: the allocator's mutex guards it.
class Segments {
 public:
  // Blocks come from this source from now on (null: from none); what earlier sources gave is
  // returned to them when its last block is.
  void set_source(const BlockSource* source);
  // Null: there is no source, or it has no memory.
  void* take(size_t bytes);
  // False if the block is not from here.
  bool give_back(void* p, size_t bytes);
  // Puts private copies in the place of all segments and forgets the source: in a forked child,
  // whose writes must not reach its parent.
  void make_private();

  // A segment to give back, which the caller does without the mutex.
  struct Unused {
    void* handle;
    void (*release)(void* handle);
  };
  std::vector<Unused> take_unused() { return std::exchange(unused_, {}); }

 private:
  struct Segment {
    char* base;
    size_t bytes;
    void* handle;
    void (*release)(void* handle);
    bool current;                   // of the present source
    std::map<size_t, size_t> free;  // ranges: offset, length; never adjacent
  };
  using List = std::vector<std::unique_ptr<Segment>>;
  static void* cut(Segment& s, size_t bytes);
  void drop_if_unused(List::iterator s);

  BlockSource source_{};
  List list_;  // by address
  std::vector<Unused> unused_;
};

}  // namespace eager::core
