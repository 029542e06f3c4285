// Runs the registered tests whose names contain the first argument, or all.
#include <cstring>

#include "testing/test.h"

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // tests fork: what is buffered would be printed twice
  int failures = 0, runs = 0;
  for (const eager::test::Case& c : eager::test::cases()) {
    if (argc > 1 && !std::strstr(c.name, argv[1])) continue;
    ++runs;
    try {
      c.run();
    } catch (const std::exception& e) {
      ++failures;
      std::printf("FAILED %s\n  %s\n", c.name, e.what());
    }
  }
  std::printf("%d tests, %d failed\n", runs, failures);
  return failures ? 1 : 0;
}
