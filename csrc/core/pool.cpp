#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

#include "error.h"

namespace eager::core {

LongWorkHooks long_work_hooks;

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `done()` or about `microseconds` have passed; whether it is done.
template <class F>
bool spin(int microseconds, F&& done) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::microseconds(microseconds);
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return done();
}

constexpr int kSpin = 40;  // microseconds: about what waking a parked thread costs

// Sleeps and is woken.  signal() is one load while nobody sleeps.
class Parking {
 public:
  // Returns when `done()`, which must become true before signal() is called.
  template <class F>
  void wait(F&& done) {
    if (spin(kSpin, done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);  // sequentially consistent with the writer's change of done()
    changed_.wait(lock, done);
    sleepers_.fetch_sub(1);
  }
  void signal() {
    if (sleepers_.load() == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int> sleepers_{0};
};

struct Job {
  void (*fn)(void*, int);
  void* context;
  std::atomic<int> left{0};  // workers that still run
  std::mutex error_mutex;
  std::exception_ptr error;

  void run(int worker) {
    try {
      fn(context, worker);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

thread_local bool inside_job = false;

class Pool {
 public:
  // Jobs of different threads take turns.
  void run(int n, void (*fn)(void*, int), void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    grow(n - 1);
    Job job;
    job.fn = fn;
    job.context = context;
    job.left.store(n - 1);
    for (int w = 1; w < n; ++w) {
      Worker& worker = *workers_[size_t(w - 1)];
      worker.job.store(&job);
      worker.parking.signal();
    }
    inside_job = true;
    job.run(0);
    inside_job = false;
    finished_.wait([&] { return job.left.load() == 0; });
    // A worker that has counted itself out does not touch the job again.
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  struct Worker {
    alignas(64) std::atomic<Job*> job{nullptr};
    Parking parking;
  };

  void grow(int n) {
    while (int(workers_.size()) < n) {
      auto* w = new Worker;  // lives as long as its thread: to the end of the process
      const int index = int(workers_.size()) + 1;
      std::thread([this, w, index] { serve(*w, index); }).detach();
      workers_.push_back(w);
    }
  }

  void serve(Worker& w, int index) {
    inside_job = true;
    for (;;) {
      w.parking.wait([&] { return w.job.load() != nullptr; });
      Job* job = w.job.load();
      job->run(index);
      w.job.store(nullptr);
      if (job->left.fetch_sub(1) == 1) finished_.signal();
    }
  }

  std::mutex turn_;
  Parking finished_;
  std::vector<Worker*> workers_;
};

std::atomic<Pool*> pool{nullptr};

// Never destroyed: its threads may outlive main.  A forked child has none of the threads, so it
// starts over with a new pool.
Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, [] {
      pool.store(new Pool);
      inside_job = false;
    });
  });
  return *pool.load();
}

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

void check_threads(const char* who, int n) {
  if (n < 1 || n > 1024) {
    fail(ErrorKind::value, who, "not a usable number of threads", "1 to 1024", std::to_string(n));
  }
}

int initial_threads() {
  const char* wanted = std::getenv("EAGER_NUM_THREADS");
  if (!wanted || !*wanted) return available_cpus();
  const int n = std::atoi(wanted);
  check_threads("EAGER_NUM_THREADS", n);
  return n;
}

std::atomic<int>& thread_count() {
  static std::atomic<int> n{initial_threads()};
  return n;
}

}  // namespace

int num_threads() { return inside_job ? 1 : thread_count().load(std::memory_order_relaxed); }

void set_num_threads(int n) {
  check_threads("set_num_threads", n);
  thread_count().store(n);
}

void run_on_workers(int n, void (*fn)(void*, int), void* context) {
  if (n == 1 || inside_job) {
    for (int w = 0; w < n; ++w) fn(context, w);
    return;
  }
  the_pool().run(n, fn, context);
}

void Barrier::wait() {
  const uint64_t phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == n_) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  const auto passed = [&] { return __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) != phase; };
  // With more threads than processors the one we wait for may need ours.
  while (!spin(kSpin, passed)) std::this_thread::yield();
}

namespace detail {
namespace {

struct Ranges {
  int64_t n, step;
  void (*fn)(void*, int64_t, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
};

void work(void* p, int) {
  Ranges& r = *static_cast<Ranges*>(p);
  for (;;) {
    const int64_t begin = r.next.fetch_add(r.step, std::memory_order_relaxed);
    if (begin >= r.n) return;
    r.fn(r.context, begin, std::min(begin + r.step, r.n));
  }
}

}  // namespace

void parallel_ranges(int64_t n, int64_t grain, void (*fn)(void*, int64_t, int64_t), void* context) {
  const int64_t threads = std::min<int64_t>(num_threads(), (n + grain - 1) / grain);
  // Several ranges per thread even out threads that are late.
  const int64_t step = std::max(grain, (n + threads * 4 - 1) / (threads * 4));
  Ranges ranges{n, step, fn, context};
  run_on_workers(int(threads), work, &ranges);
}

}  // namespace detail
}  // namespace eager::core
