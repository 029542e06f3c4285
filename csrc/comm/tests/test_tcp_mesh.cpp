// TCP links as Mesh uses them: its I/O thread and waiters share the work.
#include <cstring>
#include <random>

#include "ranks.h"

using namespace eager::comm;
using namespace eager::comm::test;

namespace {

std::vector<uint32_t> numbers(uint32_t seed, size_t n) {
  std::vector<uint32_t> values(n);
  uint32_t x = seed * 2654435761u + 1;
  for (uint32_t& v : values) v = x = x * 1664525u + 1013904223u;
  return values;
}

void with_tcp(int size, int sockets, const std::function<void(Mesh&, Store&)>& rank) {
  const Meeting meeting;
  in_threads(size, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = meeting.options(r, size);
    o.transport = "tcp";
    o.tcp_sockets = sockets;
    Mesh mesh(o, store);
    rank(mesh, store);
  });
}

}  // namespace

// Every rank puts to the next and waits for the one before: random sizes, two threads per rank.
TEST(tcp_mesh_random_puts_around_a_ring) {
  constexpr size_t kSlot = 1 << 20;
  constexpr int kThreads = 2, kRounds = 25;
  with_tcp(3, 2, [&](Mesh& mesh, Store& store) {
    const Region& region = mesh.allocate(kThreads * kSlot);
    const auto targets = exchange(mesh, store, region, "ring");
    const int next = (mesh.rank() + 1) % 3, previous = (mesh.rank() + 2) % 3;
    in_threads(kThreads, [&](int t) {
      const auto size = [&](int rank, int round) {
        std::mt19937 random(uint32_t(rank * 1000 + round * 10 + t));
        const size_t limit = size_t(1) << (random() % 19);
        return random() % limit;
      };
      const uint32_t there = uint32_t(100 + t), seen = uint32_t(200 + t);
      for (int i = 1; i <= kRounds; ++i) {
        const auto mine = numbers(uint32_t(mesh.rank() * 100 + i), size(mesh.rank(), i));
        const auto theirs = numbers(uint32_t(previous * 100 + i), size(previous, i));
        const Piece piece{mine.data(), mine.size() * 4};
        const uint64_t ticket =
            mesh.put(targets[size_t(next)], size_t(t) * kSlot, &piece, 1, there);
        mesh.wait(previous, there, uint32_t(i), waiting());
        const std::byte* slot = region.base + size_t(t) * kSlot;
        CHECK(theirs.empty() || std::memcmp(slot, theirs.data(), theirs.size() * 4) == 0);
        mesh.signal(previous, seen);
        mesh.wait(next, seen, uint32_t(i), waiting());
        mesh.sent(next, ticket, waiting());
      }
    });
  });
}

// More than sockets and queues hold, by all ranks at once: somebody has to receive for those who
// are inside put().
TEST(tcp_mesh_large_puts_around_a_ring) {
  constexpr size_t kBytes = 24 << 20;
  with_tcp(3, 3, [&](Mesh& mesh, Store& store) {
    const Region& region = mesh.allocate(kBytes);
    const auto targets = exchange(mesh, store, region, "ring");
    const int next = (mesh.rank() + 1) % 3, previous = (mesh.rank() + 2) % 3;
    const auto mine = numbers(uint32_t(mesh.rank()), kBytes / 4);
    const Piece piece{mine.data(), kBytes};
    uint64_t ticket = 0;
    for (int i = 0; i < 5; ++i) ticket = mesh.put(targets[size_t(next)], 0, &piece, 1, 100);
    mesh.wait(previous, 100, 5, waiting(60s));
    mesh.sent(next, ticket, waiting(60s));
    const auto theirs = numbers(uint32_t(previous), kBytes / 4);
    CHECK(std::memcmp(region.base, theirs.data(), kBytes) == 0);
  });
}
