// all_reduce of float32 between processes, with every algorithm: the numbers behind choose.cpp.
//
//   comm_bench_all_reduce [ranks] [shm|tcp|verbs] [most bytes]
//
// Rows are sizes; columns are algorithms on ordinary memory, then `direct` and `table` on memory
// made by allocate() ("+"), and a plan.  All columns of a row are measured in turn, several
// rounds of them, so that a change of the machine's speed meets all.  Given is the median over
// rounds, in microseconds, of the time until rank 0 goes on.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/group.h"
#include "comm/mesh.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

struct Column {
  std::string name;
  std::function<void(size_t bytes)> run;
  size_t most = SIZE_MAX;
};

double median(std::vector<double>& v) {
  std::nth_element(v.begin(), v.begin() + long(v.size() / 2), v.end());
  return v[v.size() / 2];
}

void bench(Mesh& mesh, Store& store, size_t most) {
  const int size = mesh.size(), rank = mesh.rank();
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(r);
  std::vector<std::unique_ptr<Group>> groups;
  const auto group = [&](const std::string& algorithm) -> Group& {
    GroupOptions options;
    options.algorithm = algorithm;
    options.timeout = 60s;
    const uint32_t id = uint32_t(groups.size());
    groups.push_back(std::make_unique<Group>(
        mesh, ranks, id, exchange_through(store, "group" + std::to_string(id), rank, size),
        options));
    return *groups.back();
  };
  std::vector<char> heap(most, 0);
  const Region& region = mesh.allocate(most);
  std::unique_ptr<Plan> plan;
  const auto reduce = [&](Group& g, void* data) {
    return [&g, data](size_t bytes) {
      g.all_reduce(data, bytes / sizeof(float), DType::f32, ReduceOp::sum);
    };
  };
  std::vector<Column> columns;
  columns.push_back({"one_shot", reduce(group("one_shot"), heap.data()), size_t(4) << 20});
  for (const char* name : {"direct", "ring", "halving_doubling"}) {
    columns.push_back({name, reduce(group(name), heap.data())});
  }
  columns.push_back({"direct+", reduce(*groups[1], region.base)});
  Group& table = group("");
  columns.push_back({"table+", reduce(table, region.base)});
  columns.push_back({"plan+", [&](size_t) {
                       plan->start();
                       plan->finish();
                     }});
  if (rank == 0) {
    std::printf("%d ranks, %s\n%10s", size, mesh.transport(1), "bytes");
    for (const Column& c : columns) std::printf(" %16s", c.name.c_str());
    std::printf("  table says\n");
  }
  for (size_t bytes = 8; bytes <= most; bytes *= bytes < 1024 ? 8 : 4) {
    plan = table.plan_all_reduce(region, 0, bytes / sizeof(float), DType::f32, ReduceOp::sum);
    const int calls = int(std::clamp<size_t>((size_t(1) << 19) / bytes, 1, 200));
    const int rounds = bytes > (size_t(4) << 20) ? 7 : 11;
    std::vector<std::vector<double>> times(columns.size());
    for (int round = 0; round < rounds; ++round) {
      for (size_t c = 0; c < columns.size(); ++c) {
        if (bytes > columns[c].most) continue;
        table.barrier();
        const auto start = Clock::now();
        for (int k = 0; k < calls; ++k) columns[c].run(bytes);
        times[c].push_back(std::chrono::duration<double>(Clock::now() - start).count() / calls);
      }
    }
    plan.reset();
    if (rank) continue;
    std::printf("%10zu", bytes);
    for (std::vector<double>& t : times) {
      t.empty() ? std::printf(" %16s", "-") : std::printf(" %16.1f", median(t) * 1e6);
    }
    std::printf("  %s\n", table.algorithm(bytes).c_str());
    std::fflush(stdout);
  }
  table.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  const int size = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string transport = argc > 2 ? argv[2] : "";
  const size_t most = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : size_t(64) << 20;
  if (size < 2 || size > 64 || most < 8) {
    std::fprintf(stderr,
                 "usage: comm_bench_all_reduce [2 to 64 ranks] [shm|tcp|verbs] [most bytes]\n");
    return 2;
  }
  int ports[2];
  if (pipe(ports)) return 1;
  std::vector<pid_t> children;
  for (int r = 0; r < size; ++r) {
    const pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid > 0) {
      children.push_back(pid);
      continue;
    }
    int status = 1;
    try {
      uint16_t port = 0;
      if (read(ports[0], &port, sizeof port) != ssize_t(sizeof port)) _exit(1);
      Store store("127.0.0.1", port, "bench", 60s);
      MeshOptions options;
      options.rank = r;
      options.size = size;
      options.prefix = "bench/";
      options.secret = "bench";
      options.transport = transport;
      Mesh mesh(options, store);
      bench(mesh, store, most / sizeof(float) * sizeof(float));
      status = 0;
    } catch (const std::exception& e) {
      std::fprintf(stderr, "rank %d: %s\n", r, e.what());
    }
    std::fflush(stdout);
    _exit(status);
  }
  const StoreServer server("127.0.0.1", 0, "bench");
  const uint16_t port = server.port();
  for (int r = 0; r < size; ++r) {
    if (write(ports[1], &port, sizeof port) != ssize_t(sizeof port)) return 1;
  }
  int failed = 0;
  for (const pid_t pid : children) {
    int status = 0;
    waitpid(pid, &status, 0);
    failed |= !WIFEXITED(status) || WEXITSTATUS(status);
  }
  return failed;
}
