// The persistent worker pool.  Workers spin briefly for the next job, then park.
#pragma once
#include <cstdint>

namespace eager::core {

int num_threads();
void set_num_threads(int n);  // >= 1; the calling thread is worker 0

// Runs fn(context, worker) on workers 0..n-1 at once (n <= num_threads()); returns when all have.
// The first exception is rethrown.  Runs inline when n == 1 or when called from inside a job.
void run_on_workers(int n, void (*fn)(void* context, int worker), void* context);

// Splits [0, n) into ranges of at least `grain` and runs body(begin, end) on the pool.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& body);

// For use inside a run_on_workers job: all `n` workers arrive before any goes on.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait();

 private:
  const int n_;
  alignas(64) int arrived_ = 0;     // accessed with __atomic builtins
  alignas(64) uint64_t phase_ = 0;  // monotonic
};

// Called around work expected to take long (a GEMM, a large loop, a compiled program).
// csrc/bind installs hooks that release and retake the interpreter lock.
struct LongWorkHooks {
  void* (*begin)() = nullptr;  // may return null: nothing to undo
  void (*end)(void*) = nullptr;
};
extern LongWorkHooks long_work_hooks;
class LongWork {
 public:
  explicit LongWork(bool is_long) {
    if (is_long && long_work_hooks.begin) state_ = long_work_hooks.begin();
  }
  ~LongWork() {
    if (state_) long_work_hooks.end(state_);
  }
  LongWork(const LongWork&) = delete;

 private:
  void* state_ = nullptr;
};

namespace detail {
void parallel_ranges(int64_t n, int64_t grain, void (*fn)(void*, int64_t, int64_t), void* context);
}
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& body) {
  if (n <= grain || num_threads() == 1) {
    if (n > 0) body(int64_t(0), n);
    return;
  }
  detail::parallel_ranges(
      n, grain, [](void* c, int64_t a, int64_t b) { (*static_cast<F*>(c))(a, b); }, &body);
}

}  // namespace eager::core
