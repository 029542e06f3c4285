#include "error.h"

#include <cstring>

namespace eager::comm {

void fail(ErrorKind kind, const std::string& op, const std::string& problem,
          const std::string& expected, const std::string& given, const std::string& hint,
          int peer) {
  std::string text = op + ": " + problem;
  if (!expected.empty()) text += "\n  expected: " + expected;
  if (!given.empty()) text += "\n  given: " + given;
  if (!hint.empty()) text += "\n  try: " + hint;
  throw Error(kind, text, peer);
}

void fail_errno(const std::string& op, const std::string& problem, int number) {
  fail(ErrorKind::system, op, problem + ": " + std::strerror(number));
}

}  // namespace eager::comm
