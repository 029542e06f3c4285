#include "error.h"

namespace eager::core {

void fail(ErrorKind kind, const char* op, const std::string& problem, const std::string& expected,
          const std::string& given, const std::string& hint) {
  std::string text =
      std::string(op) + ": " + problem + "\n  expected: " + expected + "\n  given: " + given;
  if (!hint.empty()) text += "\n  try: " + hint;
  throw Error(kind, text);
}

}  // namespace eager::core
