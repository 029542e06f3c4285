// An input of a fuzzer read as a program: numbers and pieces until it is used up.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace eager::comm::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}

  bool more() const { return left_ > 0; }
  uint8_t byte() { return left_ == 0 ? 0 : (--left_, *at_++); }
  std::string piece(size_t longest) {
    const size_t n = longest < left_ ? longest : left_;
    std::string out(reinterpret_cast<const char*>(at_), n);
    at_ += n, left_ -= n;
    return out;
  }

 private:
  const uint8_t* at_;
  size_t left_;
};

// Unlike assert, in every build.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace eager::comm::fuzz
