#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "core/pool.h"
#include "test.h"

using namespace eager::core;

namespace {

struct Threads {  // scope
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

template <class F>
void on_workers(int n, F f) {
  run_on_workers(n, [](void* c, int w) { (*static_cast<F*>(c))(w); }, &f);
}

int64_t parallel_sum(int64_t n) {
  std::atomic<int64_t> sum{0};
  parallel_for(n, 100, [&](int64_t a, int64_t b) {
    int64_t s = 0;
    for (int64_t i = a; i < b; ++i) s += i;
    sum += s;
  });
  return sum;
}

}  // namespace

TEST(pool_runs_every_worker_once) {
  Threads four(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::atomic<int>> runs(4);
    on_workers(4, [&](int w) { ++runs[size_t(w)]; });
    for (auto& r : runs) CHECK(r == 1);
    // Give workers the time to park now and then.
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(pool_covers_ranges) {
  for (int threads : {1, 2, 5}) {
    Threads t(threads);
    for (int64_t n : {0, 1, 99, 100, 101, 12345}) CHECK(parallel_sum(n) == n * (n - 1) / 2);
  }
}

TEST(pool_rethrows) {
  Threads three(3);
  for (int thrower = 0; thrower < 3; ++thrower) {
    bool caught = false;
    try {
      on_workers(3, [&](int w) {
        if (w == thrower) throw std::runtime_error("from a worker");
      });
    } catch (const std::runtime_error& e) {
      caught = std::string(e.what()) == "from a worker";
    }
    CHECK(caught);
  }
  CHECK(parallel_sum(1000) == 499500);
}

TEST(pool_nested_jobs_run_inline) {
  Threads two(2);
  std::atomic<int> runs{0};
  on_workers(2, [&](int) {
    CHECK(num_threads() == 1);
    on_workers(3, [&](int) { ++runs; });
  });
  CHECK(runs == 6);
}

TEST(pool_serves_several_threads) {
  Threads two(2);
  std::vector<std::thread> callers;
  std::atomic<int> good{0};
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) good += parallel_sum(2000) == 1999000;
    });
  }
  for (std::thread& t : callers) t.join();
  CHECK(good == 600);
}

TEST(pool_barrier_separates_phases) {
  Threads three(3);
  Barrier barrier(3);
  std::vector<int> cells(3, 0);
  std::atomic<int> wrong{0};
  on_workers(3, [&](int w) {
    for (int phase = 1; phase <= 100; ++phase) {
      cells[size_t(w)] = phase;
      barrier.wait();
      wrong += std::accumulate(cells.begin(), cells.end(), 0) != 3 * phase;
      barrier.wait();
    }
  });
  CHECK(wrong == 0);
}

TEST(pool_works_in_a_forked_child) {
  Threads two(2);
  CHECK(parallel_sum(10000) == 49995000);
  const pid_t child = fork();
  if (child == 0) _exit(parallel_sum(10000) == 49995000 ? 0 : 1);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(pool_rejects_bad_counts) {
  CHECK_FAILS(value, set_num_threads(0));
  CHECK_FAILS(value, set_num_threads(-3));
}
