// The library by itself: each rank is one process, and adds up a vector over all of them.
//
//   comm_all_reduce RANK SIZE [HOST PORT [TRANSPORT]]      e.g. in two shells
//   comm_all_reduce 0 2 & comm_all_reduce 1 2
//
// EAGER_COMM_SECRET must be the same everywhere; without it only 127.0.0.1 is served.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "comm/error.h"
#include "comm/group.h"
#include "comm/mesh.h"
#include "comm/store.h"

using namespace eager::comm;

namespace {

int run(int rank, int size, const std::string& host, uint16_t port, const char* transport) {
  const char* given = std::getenv("EAGER_COMM_SECRET");
  const std::string secret = given ? given : "";
  std::unique_ptr<StoreServer> server;  // where ranks meet; rank 0 keeps it
  if (rank == 0) server = std::make_unique<StoreServer>(host, port, secret);
  Store store(host, port, secret, std::chrono::seconds(30));

  MeshOptions options;
  options.rank = rank;
  options.size = size;
  options.prefix = "example/";
  options.secret = secret;
  options.transport = transport;
  Mesh mesh(options, store);
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(r);
  Group group(mesh, ranks, 0, exchange_through(store, "group", rank, size));

  // Memory that peers can reach: shared memory peers add it up in place, without a copy.
  const size_t count = size_t(1) << 20;
  const Region& region = mesh.allocate(count * sizeof(float));
  float* values = reinterpret_cast<float*>(region.base);
  for (size_t i = 0; i < count; ++i) values[i] = float(rank + 1);
  group.all_reduce(values, count, DType::f32, ReduceOp::sum);

  const float expected = float(size * (size + 1) / 2);
  for (size_t i = 0; i < count; ++i) {
    if (values[i] != expected) {
      std::fprintf(stderr, "rank %d: element %zu is %g, not %g\n", rank, i, values[i], expected);
      return 1;
    }
  }
  const int peer = (rank + 1) % size;
  std::printf("rank %d: %zu sums are right; to rank %d by %s (%s); %llu bytes staged\n", rank,
              count, peer, mesh.transport(peer), mesh.reason(peer).c_str(),
              static_cast<unsigned long long>(mesh.stats().staged_bytes.load()));
  group.barrier();
  if (rank == 0) {  // the store stays until everyone is through
    for (int r = 1; r < size; ++r) store.get("example/done/" + std::to_string(r));
  } else {
    store.set("example/done/" + std::to_string(rank), "1");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5 && argc != 6) {
    std::fprintf(stderr, "usage: %s RANK SIZE [HOST PORT [TRANSPORT]]\n", argv[0]);
    return 2;
  }
  try {
    return run(std::atoi(argv[1]), std::atoi(argv[2]), argc > 3 ? argv[3] : "127.0.0.1",
               argc > 4 ? uint16_t(std::atoi(argv[4])) : uint16_t(29400), argc > 5 ? argv[5] : "");
  } catch (const Error& e) {
    std::fprintf(stderr, "rank %s: %s\n", argv[1], e.what());
    return 1;
  }
}
