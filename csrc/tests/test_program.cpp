#include <atomic>
#include <stdexcept>
#include <vector>

#include "core/pool.h"
#include "core/program.h"
#include "test.h"

using namespace eager::core;

namespace {

// buffers[0][ins[0]] = ins[1]
void write(void* const* buffers, const int64_t* ins) {
  static_cast<int64_t*>(buffers[0])[ins[0]] = ins[1];
}
// buffers[0][ins[0]] = sum of buffers[0][ins[1] .. ins[2])
void total(void* const* buffers, const int64_t* ins) {
  auto* cells = static_cast<int64_t*>(buffers[0]);
  int64_t sum = 0;
  for (int64_t i = ins[1]; i < ins[2]; ++i) sum += cells[i];
  cells[ins[0]] = sum;
}
void fail_here(void* const*, const int64_t*) { throw std::runtime_error("a body failed"); }

const Body kBodies[] = {write, total, fail_here};

struct Table {
  explicit Table(int workers) : workers(workers) { starts.push_back(0); }
  void add(std::vector<int64_t> instruction) {
    words.push_back(int64_t(instruction.size()) + 1);
    words.insert(words.end(), instruction.begin(), instruction.end());
  }
  void end_list() { starts.push_back(int64_t(words.size())); }
  void run(void* buffer) {
    void* buffers[] = {buffer};
    const int epochs = int(starts.size() - 1) / workers;
    run_program({words.data(), starts.data(), workers, epochs, kBodies, buffers});
  }
  int workers;
  std::vector<int64_t> words, starts;
};

}  // namespace

TEST(program_runs_epochs_in_order) {
  const int before = num_threads();
  for (int threads : {1, 2, 4}) {
    for (int workers : {1, 3, 4}) {
      set_num_threads(threads);
      Table table(workers);
      // First epoch: worker w writes cells w and w + 10.  Second: each sums what all wrote.
      for (int w = 0; w < workers; ++w) {
        table.add({0, w, w + 1});
        table.add({0, w + 10, 100});
        table.end_list();
      }
      for (int w = 0; w < workers; ++w) {
        table.add({1, 20 + w, 0, 20});
        table.end_list();
      }
      for (int round = 0; round < 20; ++round) {
        std::vector<int64_t> cells(40, 0);
        table.run(cells.data());
        for (int w = 0; w < workers; ++w)
          CHECK(cells[size_t(20 + w)] == workers * (workers + 1) / 2 + 100 * workers);
      }
    }
  }
  set_num_threads(before);
}

TEST(program_rethrows_and_does_not_hang) {
  const int before = num_threads();
  set_num_threads(2);
  Table table(2);
  table.add({2});
  table.end_list();
  table.end_list();
  for (int w = 0; w < 2; ++w) {
    table.add({0, w, 1});
    table.end_list();
  }
  int64_t cells[2] = {0, 0};
  bool caught = false;
  try {
    table.run(cells);
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught && cells[0] == 0);
  set_num_threads(before);
}

TEST(program_of_nothing) {
  Table table(1);
  table.end_list();
  table.run(nullptr);
  run_program({nullptr, nullptr, 1, 0, nullptr, nullptr});
}
