#include <cstdlib>
#include <string>

#include "op.h"

namespace eager::core {
namespace {

enum { baseline, avx2, avx512 };

int supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  if (!has_avx2) return baseline;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has_avx512 ? avx512 : avx2;
#else
  return baseline;
#endif
}

int choose() {
  const int best = supported();
  const char* wanted = std::getenv("EAGER_ISA");
  if (!wanted || !*wanted) return best;
  const std::string w = wanted;
  const int level = w == "baseline" ? baseline : w == "avx2" ? avx2 : w == "avx512" ? avx512 : -1;
  if (level < 0) {
    fail(ErrorKind::value, "EAGER_ISA", "unknown instruction set", "baseline, avx2 or avx512", w);
  }
  return level < best ? level : best;
}

}  // namespace

int isa() {
  static const int chosen = choose();
  return chosen;
}

}  // namespace eager::core
