// The one exception type of the core.  csrc/bind turns each kind into its Python class.
#pragma once
#include <stdexcept>
#include <string>

namespace eager::core {

enum class ErrorKind { shape, dtype, index, device, value, autograd, version, memory, internal };

// what() reads, line by line: "<op>: <problem>", "  expected: ...", "  given: ...", "  try: ..."
struct Error : std::runtime_error {
  Error(ErrorKind kind, const std::string& text) : std::runtime_error(text), kind(kind) {}
  ErrorKind kind;
};

// Throws an Error with the lines above; an empty `hint` leaves the last line out.
[[noreturn]] void fail(ErrorKind kind, const char* op, const std::string& problem,
                       const std::string& expected, const std::string& given,
                       const std::string& hint = "");

}  // namespace eager::core
