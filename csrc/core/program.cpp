#include "program.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "pool.h"

namespace eager::core {
namespace {

struct Launch {
  const Program& program;
  int threads;
  Barrier barrier;
  std::atomic<bool> failed{false};
  std::mutex error_mutex;
  std::exception_ptr error;

  Launch(const Program& p, int n) : program(p), threads(n), barrier(n) {}

  void run_list(int64_t list) const {
    const Program& p = program;
    const int64_t* at = p.words + p.starts[list];
    const int64_t* const end = p.words + p.starts[list + 1];
    for (; at < end; at += at[0]) p.bodies[at[1]](p.buffers, at + 2);
  }

  // Bodies set the word without synchronisation; the barrier between epochs orders it.
  bool stopped() const {
    return program.stop && __atomic_load_n(program.stop, __ATOMIC_RELAXED) != 0;
  }

  // A thread whose body has thrown still meets the others at every barrier.
  void run_thread(int thread) {
    for (int32_t epoch = 0; epoch < program.epochs; ++epoch) {
      if (epoch) barrier.wait();
      try {
        for (int32_t w = thread; w < program.workers; w += threads) {
          if (failed.load(std::memory_order_relaxed) || stopped()) break;
          run_list(int64_t(epoch) * program.workers + w);
        }
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        failed.store(true, std::memory_order_relaxed);
      }
    }
  }
};

}  // namespace

void run_program(const Program& program) {
  if (program.workers < 1 || program.epochs < 1) return;
  LongWork work(true);
  Launch launch(program, std::min(num_threads(), int(program.workers)));
  run_on_workers(
      launch.threads, [](void* l, int w) { static_cast<Launch*>(l)->run_thread(w); }, &launch);
  if (launch.error) std::rethrow_exception(launch.error);
}

}  // namespace eager::core
