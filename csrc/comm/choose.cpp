#include "choose.h"

#include <algorithm>
#include <iterator>
#include <sstream>

#include "error.h"

namespace eager::comm {
namespace {

const char* const kNames[] = {"one_shot", "direct", "ring", "halving_doubling", "hierarchical"};

const std::string kKinds[] = {"mapped", "copied", "network", "mixed"};

const char* const kBuiltIn =
    "mapped - 16384 one_shot\n"
    "mapped - - direct\n"
    "copied 2 262144 one_shot\n"
    "copied 2 - direct\n"
    "copied 8 16384 one_shot\n"
    "copied 8 8388608 ring\n"
    "copied - - direct\n"
    "network 2 131072 one_shot\n"
    "network 4 65536 one_shot\n"
    "network 8 16384 one_shot\n"
    "network 8 - direct\n"
    "network - 524288 halving_doubling\n"
    "network - - ring\n"
    "mixed 8 16384 one_shot\n"
    "mixed - 65536 halving_doubling\n"
    "mixed - - hierarchical\n";

size_t number(const std::string& text, const std::string& line) {
  if (text == "-") return SIZE_MAX;
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != text.npos) {
    fail(ErrorKind::invalid, "algorithm table", "not a number", "digits or -", line);
  }
  return size_t(std::stoull(text));
}

}  // namespace

const char* name(Algorithm a) { return kNames[int(a)]; }

Algorithm algorithm_named(const std::string& name) {
  for (int k = 0; k < 5; ++k) {
    if (name == kNames[k]) return Algorithm(k);
  }
  fail(ErrorKind::invalid, "algorithm", "there is no such algorithm",
       "one_shot, direct, ring, halving_doubling or hierarchical", name);
}

Table::Table(const std::string& text) {
  parse(text);
  parse(kBuiltIn);
}

void Table::parse(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string kind, ranks, bytes, algorithm, more;
    if (!(words >> kind)) continue;
    words >> ranks >> bytes >> algorithm;
    const auto found = std::find(std::begin(kKinds), std::end(kKinds), kind);
    if (found == std::end(kKinds) || algorithm.empty() || words >> more) {
      fail(ErrorKind::invalid, "algorithm table", "a line is not a rule",
           "<mapped|copied|network|mixed> <most ranks> <most bytes> <algorithm>", line);
    }
    const auto reachability = Reachability(found - std::begin(kKinds));
    rules_.push_back(
        {reachability, number(ranks, line), number(bytes, line), algorithm_named(algorithm)});
  }
}

Algorithm Table::choose(Reachability reachability, int ranks, size_t bytes) const {
  for (const Rule& rule : rules_) {
    if (rule.reachability == reachability && size_t(ranks) <= rule.ranks && bytes <= rule.bytes) {
      return rule.algorithm;
    }
  }
  return Algorithm::ring;
}

}  // namespace eager::comm
