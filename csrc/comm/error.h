// What goes wrong in communication, and the one shape of its text.
#pragma once
#include <stdexcept>
#include <string>

namespace eager::comm {

enum class ErrorKind {
  invalid,         // the caller's arguments
  mismatch,        // ranks called one collective with different arguments
  timeout,         // no answer in time, and no rank to blame
  peer_lost,       // a rank died, hangs or is cut off; `peer` says which
  protocol,        // a peer sent what no correct peer sends
  authentication,  // a peer could not prove that it knows the secret
  system,          // the operating system or a device refused
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& text, int peer = -1)
      : std::runtime_error(text), kind(kind), peer(peer) {}
  const ErrorKind kind;
  const int peer;  // rank, for peer_lost
};

// Throws.  First line "<op>: <problem>", then the lines that are not empty of
// "  expected: ", "  given: " and "  try: ".
[[noreturn]] void fail(ErrorKind kind, const std::string& op, const std::string& problem,
                       const std::string& expected = "", const std::string& given = "",
                       const std::string& hint = "", int peer = -1);
// The same for a failed system call: the problem ends with strerror(number).
[[noreturn]] void fail_errno(const std::string& op, const std::string& problem, int number);

}  // namespace eager::comm
