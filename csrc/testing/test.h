// The smallest test framework: TEST(name) { CHECK(...); }, registered and run by test_main.cpp.
#pragma once
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace eager::test {

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] inline void failed(const char* file, int line, const std::string& what) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

#define TEST(name)                                                              \
  static void test_##name();                                                    \
  static const ::eager::test::Registration register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) \
  if (!(condition)) ::eager::test::failed(__FILE__, __LINE__, #condition)

}  // namespace eager::test
