// Bandwidth and latency of puts between two processes, against memcpy.
//
//   comm_bench_put [shm|tcp|verbs] [--json]
//
// For each size: the time of a memcpy to private memory, and to memory made by allocate(); of a put
// into the peer's memory, one of a stream; and of a put until the peer's answer that it arrived.
// Four of each are made in turn, so that a change of the machine's speed meets all; the median
// counts.  All read one source, and each writes a destination of its own over and over.  Latency:
// half of a ping-pong of signals, and of puts of 8 bytes.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/meet.h"
#include "comm/mesh.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

constexpr uint32_t kStream = 20, kArrived = 21, kAnswer = 22, kPing = 23;
constexpr int kBatch = 4;
constexpr size_t kLargest = size_t(64) << 20;

Waiting waiting() {
  Waiting w;
  w.op = "benchmark";
  w.deadline = Clock::now() + 60s;
  return w;
}

double seconds(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

int repetitions(size_t bytes) {
  return static_cast<int>(std::clamp<size_t>((size_t(64) << 20) / bytes, 7, 501));
}

// Rank 1 answers the last put of each batch.
void serve(Mesh& mesh) {
  uint32_t n = 0;
  for (size_t bytes = 1024; bytes <= kLargest; bytes *= 4)
    for (int i = 0; i < (1 + kBatch) * repetitions(bytes); ++i) {
      mesh.wait(0, kArrived, ++n, waiting());
      mesh.signal(0, kAnswer);
    }
}

struct Row {
  double privately, shared, put, answered;
};

Row measure(Mesh& mesh, const Target& target, size_t bytes, const std::byte* source,
            std::byte* private_memory, std::byte* shared_memory, uint32_t* n) {
  const int count = repetitions(bytes);
  std::vector<double> times[4];
  const Piece piece{source, bytes};
  const auto time = [&](int column, const auto& batch) {
    const auto start = Clock::now();
    batch();
    times[column].push_back(seconds(start) / kBatch);
  };
  for (int i = 0; i < count; ++i) {
    time(0, [&] {
      for (int k = 0; k < kBatch; ++k) std::memcpy(private_memory, source, bytes);
    });
    time(1, [&] {
      for (int k = 0; k < kBatch; ++k) std::memcpy(shared_memory, source, bytes);
    });
    time(2, [&] {
      uint64_t ticket = 0;
      for (int k = 0; k < kBatch; ++k) ticket = mesh.put(target, 0, &piece, 1, kStream);
      mesh.sent(1, ticket, waiting());
    });
    mesh.signal(1, kArrived);
    mesh.wait(1, kAnswer, ++*n, waiting());
    time(3, [&] {
      for (int k = 0; k < kBatch; ++k) {
        mesh.put(target, 0, &piece, 1, kArrived);
        mesh.wait(1, kAnswer, ++*n, waiting());
      }
    });
  }
  return {median(times[0]), median(times[1]), median(times[2]), median(times[3])};
}

// Half a round, in seconds.
double latency(Mesh& mesh, const Target& target, size_t bytes, uint32_t* n) {
  const int peer = 1 - mesh.rank();
  const char data[8] = {};
  const Piece piece{data, bytes};
  std::vector<double> times;
  for (int i = 0; i < 20; ++i) {
    const auto start = Clock::now();
    for (int k = 0; k < 500; ++k) {
      if (mesh.rank() == 0) mesh.put(target, 0, &piece, 1, kPing);
      mesh.wait(peer, kPing, ++*n, waiting());
      if (mesh.rank() == 1) mesh.put(target, 0, &piece, 1, kPing);
    }
    times.push_back(seconds(start) / 1000);
  }
  return median(times);
}

void run(int rank, const std::string& transport, bool json, uint16_t port) {
  Store store("127.0.0.1", port, "benchmark", 60s);
  MeshOptions options;
  options.rank = rank;
  options.size = 2;
  options.secret = "benchmark";
  options.transport = transport;
  Mesh mesh(options, store);
  const Region& region = mesh.allocate(kLargest);
  const int peer = 1 - rank;
  const Target target =
      meet(mesh, {0, 1}, region, exchange_through(store, "keys", rank, 2))[size_t(peer)];
  uint32_t pings = 0;
  const double signal = latency(mesh, target, 0, &pings);
  const double eight = latency(mesh, target, 8, &pings);
  if (rank == 1) {
    serve(mesh);
    return;
  }
  const char* row = "%10zu  %9.2f  %9.2f  %9.2f  %9.2f  %9.2f\n";
  if (json) {
    row =
        "{\"bytes\": %zu, \"memcpy_private\": %.3f, \"memcpy_shared\": %.3f, \"put\": %.3f, "
        "\"put_answered\": %.3f, \"put_to_memcpy\": %.3f}\n";
    std::printf("{\"transport\": \"%s\", \"signal_us\": %.3f, \"put_8_us\": %.3f}\n",
                mesh.transport(1), signal * 1e6, eight * 1e6);
  } else {
    std::printf("%s: one way %.3f us for a signal, %.3f us for 8 bytes\n", mesh.transport(1),
                signal * 1e6, eight * 1e6);
    std::printf(
        "GB/s            memcpy     memcpy                  put,   put to\n"
        "     bytes    private     shared        put   answered   memcpy\n");
  }
  const std::unique_ptr<std::byte[]> source(new std::byte[kLargest]);
  const std::unique_ptr<std::byte[]> private_memory(new std::byte[kLargest]);
  std::memset(source.get(), 1, kLargest);
  std::memset(private_memory.get(), 1, kLargest);
  const Region& shared_memory = mesh.allocate(kLargest);
  uint32_t n = 0;
  for (size_t bytes = 1024; bytes <= kLargest; bytes *= 4) {
    const Row r =
        measure(mesh, target, bytes, source.get(), private_memory.get(), shared_memory.base, &n);
    const double gb = static_cast<double>(bytes) / 1e9;
    std::printf(row, bytes, gb / r.privately, gb / r.shared, gb / r.put, gb / r.answered,
                r.shared / r.put);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string transport = "shm";
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--json")
      json = true;
    else
      transport = argv[i];
  }
  try {
    int ports[2];
    if (pipe(ports) != 0) return 1;
    const pid_t child = fork();
    if (child == 0) {
      uint16_t port = 0;
      if (read(ports[0], &port, sizeof port) != sizeof port) return 1;
      run(1, transport, json, port);
      return 0;
    }
    const StoreServer server("127.0.0.1", 0, "benchmark");
    const uint16_t port = server.port();
    if (child < 0 || write(ports[1], &port, sizeof port) != sizeof port) return 1;
    run(0, transport, json, port);
    int status = 0;
    waitpid(child, &status, 0);
    return status == 0 ? 0 : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
