// Which algorithm an all_reduce takes: a table of measured limits.
#pragma once
#include <string>
#include <vector>

#include "fabric.h"

namespace eager::comm {

enum class Algorithm : uint8_t { one_shot, direct, ring, halving_doubling, hierarchical };
const char* name(Algorithm);

// How a group's members are joined.
enum class Reachability : uint8_t {
  mapped,   // all on one host, with shared memory, in which the data lies
  copied,   // the same, but the data lies elsewhere
  network,  // some share no memory
  mixed     // several hosts with equally many members, more than one
};

// A table is text, one rule a line, "# …" is a comment:
//   <mapped|copied|network|mixed> <most ranks> <most bytes> <algorithm>
// The first rule that fits wins; `-` stands for any number.  Rules given by a user come before
// the built-in ones, which are measurements of bench/all_reduce.cpp.
class Table {
 public:
  // Throws Error(invalid) that names the line.
  explicit Table(const std::string& text);
  Algorithm choose(Reachability, int ranks, size_t bytes) const;

 private:
  struct Rule {
    Reachability reachability;
    size_t ranks, bytes;
    Algorithm algorithm;
  };
  void parse(const std::string& text);
  std::vector<Rule> rules_;
};

// Throws Error(invalid) when there is no such algorithm.
Algorithm algorithm_named(const std::string& name);

}  // namespace eager::comm
