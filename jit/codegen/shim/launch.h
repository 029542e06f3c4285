// The entry point that ctypes calls; included after the source of a printed program.
#pragma once

namespace shim {

struct Arguments {
  void* const* buffers;
  const int64_t* words;
  const int64_t* starts;
  int workers, epochs;
  uint64_t* arrived;
};

inline void start(void* p) {
  const Arguments& a = *static_cast<const Arguments*>(p);
  program(a.buffers, a.words, a.starts, a.workers, a.epochs, a.arrived);
}

}  // namespace shim

// One launch.  Returns 0, or 1 with the reason in `problem`.
extern "C" int shim_run(void* const* buffers, const int64_t* words, const int64_t* starts,
                        int workers, int epochs, uint64_t* arrived, unsigned blocks, uint64_t order,
                        char* problem, size_t problem_size) {
  shim::Arguments a{buffers, words, starts, workers, epochs, arrived};
  const std::string text = shim::launch(shim::start, &a, blocks, THREADS, kSharedBytes, order);
  snprintf(problem, problem_size, "%s", text.c_str());
  return text.empty() ? 0 : 1;
}
