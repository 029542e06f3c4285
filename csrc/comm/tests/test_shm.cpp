// Shared memory: what announcements may say, and links between processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "comm/shm.h"
#include "ranks.h"

namespace eager::comm::test {
namespace {

Deadline soon() { return Clock::now() + 50ms; }

Fd sealed(size_t length) {
  Fd fd(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  CHECK(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  return fd;
}

TEST(shm_segments_are_zeroed_and_cannot_shrink) {
  const Segment s = make_segment(page_size() + 1, true);
  CHECK(s.mapping.length() == 2 * page_size());
  for (size_t i = 0; i < s.mapping.length(); ++i) CHECK(s.mapping.base()[i] == std::byte{0});
  CHECK(ftruncate(s.fd.get(), 0) != 0);
  const Mapping other = map_segment(s.fd.get(), page_size() + 1);
  s.mapping.base()[page_size()] = std::byte{42};
  CHECK(other.base()[page_size()] == std::byte{42});
  const Mapping second = map_segment(s.fd.get(), page_size(), page_size());
  CHECK(second.base()[0] == std::byte{42});
}

TEST(shm_large_segments_begin_at_a_huge_page) {
  const Segment s = make_segment(size_t(4) << 20, false);
  CHECK(reinterpret_cast<uintptr_t>(s.mapping.base()) % (size_t(2) << 20) == 0);
}

TEST(shm_descriptors_of_peers_are_checked) {
  const Fd good = sealed(2 * page_size());
  CHECK(map_segment(good.get(), 2 * page_size()).base() != nullptr);
  CHECK_FAILS(protocol, map_segment(good.get(), 2 * page_size() + 1));  // longer than the file
  CHECK_FAILS(protocol, map_segment(good.get(), 0));
  CHECK_FAILS(protocol, map_segment(good.get(), page_size(), 2 * page_size()));
  CHECK_FAILS(protocol, map_segment(good.get(), page_size(), 1));
  CHECK_FAILS(invalid, map_segment(good.get(), SIZE_MAX));
  const Fd unsealed(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(ftruncate(unsealed.get(), 4096) == 0);
  CHECK_FAILS(protocol, map_segment(unsealed.get(), 4096));
  int ends[2];
  CHECK(pipe(ends) == 0);
  const Fd in(ends[0]), out(ends[1]);
  CHECK_FAILS(protocol, map_segment(in.get(), 4096));
}

TEST(shm_announcements_are_checked) {
  PeerRegions regions;
  const Fd fd = sealed(8192);
  regions.announce(3, 8192, fd);
  CHECK_FAILS(protocol, regions.announce(3, 8192, fd));  // twice
  CHECK_FAILS(protocol, regions.announce(2, 8192, fd));  // backwards
  CHECK_FAILS(protocol, regions.announce(4, 8193, fd));  // longer than it is
  CHECK_FAILS(protocol, regions.announce(4, 0, fd));
  CHECK_FAILS(protocol, regions.withdraw(4));
  CHECK(regions.get(3, 8192, soon()) != nullptr);
  CHECK_FAILS(protocol, regions.get(3, 8191, soon()));
  CHECK_FAILS(protocol, regions.get(2, 8192, Clock::now() + 60s));  // at once: 3 came already
  CHECK_FAILS(protocol, regions.get(4, 8192, soon()));
  regions.withdraw(3);
  CHECK_FAILS(protocol, regions.get(3, 8192, soon()));
  std::thread late([&] { regions.announce(5, 4096, fd); });
  CHECK(regions.get(5, 4096, Clock::now() + 60s) != nullptr);
  late.join();
  regions.close();
  CHECK_FAILS(peer_lost, regions.get(5, 4096, Clock::now() + 60s));
}

TEST(shm_links_between_processes) {
  Job job(3, nullptr, [](Mesh& mesh, Store& store) {
    constexpr size_t kBytes = size_t(3) << 20;
    const int me = mesh.rank();
    const Region& region = mesh.allocate(3 * kBytes);
    const std::vector<Target> targets = exchange(mesh, store, region, "region");
    for (int p = 0; p < 3; ++p) CHECK(std::string(mesh.transport(p)) == (p == me ? "self" : "shm"));
    const std::vector<char> data(kBytes, static_cast<char>('a' + me));
    for (uint32_t round = 1; round <= 20; ++round) {
      for (const Target& t : targets) {
        const Piece piece{data.data(), kBytes};
        mesh.put(t, static_cast<size_t>(me) * kBytes, &piece, 1, 30);
      }
      for (int p = 0; p < 3; ++p) {
        mesh.wait(p, 30, round, waiting());
        const std::byte* from = region.base + static_cast<size_t>(p) * kBytes;
        const std::byte want = static_cast<std::byte>('a' + p);
        CHECK(from[0] == want && from[kBytes - 1] == want);
      }
    }
    // What a peer stores through the mapping is seen without a put.  In its own part: others may
    // still be putting.
    const Target& next = targets[static_cast<size_t>((me + 1) % 3)];
    CHECK(next.mapped != nullptr);
    next.mapped[static_cast<size_t>(me) * kBytes + 7] = std::byte{7};
    mesh.signal((me + 1) % 3, 31);
    mesh.wait((me + 2) % 3, 31, 1, waiting());
    CHECK(region.base[static_cast<size_t>((me + 2) % 3) * kBytes + 7] == std::byte{7});
    for (int p = 0; p < 3; ++p) mesh.signal(p, 32);
    for (int p = 0; p < 3; ++p) mesh.wait(p, 32, 1, waiting());
    mesh.release(region);
    for (int p = 0; p < 3; ++p) mesh.signal(p, 32);
    for (int p = 0; p < 3; ++p) mesh.wait(p, 32, 2, waiting());
  });
  for (int r = 0; r < 3; ++r) CHECK(job.join(r) == 0);
}

TEST(shm_sleepers_are_woken_across_processes) {
  const auto setup = [](MeshOptions& o) { o.spin = 0ns; };  // every wait sleeps
  Job job(2, setup, [](Mesh& mesh, Store& store) {
    const int peer = 1 - mesh.rank();
    const auto start = Clock::now();
    for (uint32_t i = 1; i <= 200; ++i) {
      if (mesh.rank() == 0) mesh.signal(peer, 20);
      mesh.wait(peer, 20, i, waiting());
      if (mesh.rank() == 1) mesh.signal(peer, 20);
    }
    // On a shared core one of them may always wake to find the other's signal: together they slept.
    store.add("sleeps", static_cast<int64_t>(mesh.stats().sleeps));
    mesh.signal(peer, 21);
    mesh.wait(peer, 21, 1, waiting());
    CHECK(store.add("sleeps", 0) > 0);
    // 400 sleeps that only ended with their slices of 100 ms would take 40 s.
    CHECK(Clock::now() - start < 20s);
  });
  CHECK(job.join(0) == 0 && job.join(1) == 0);
}

TEST(shm_counters_wrap_around) {
  const auto page = std::make_unique<Counters>();
  Counter& c = page->at[0];
  c.value = UINT32_MAX;
  std::thread sleeper([&] {
    while (c.value.load() == UINT32_MAX) sleep_on(c, UINT32_MAX, 10s);
  });
  advance(c);
  sleeper.join();
  CHECK(c.value == 0 && c.sleepers == 0);
}

TEST(shm_keys_of_released_regions_are_refused) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store& store) {
    const int peer = 1 - mesh.rank();
    const Region& first = mesh.allocate(4096);
    const Key k = mesh.key(first, peer);
    store.set("key/" + std::to_string(mesh.rank()),
              std::string(reinterpret_cast<const char*>(k.data()), k.size()));
    mesh.release(first);
    exchange(mesh, store, mesh.allocate(4096), "second");  // so that the withdrawal has come
    const std::string bytes = store.get("key/" + std::to_string(peer));
    Key theirs{};
    std::memcpy(theirs.data(), bytes.data(), theirs.size());
    CHECK_FAILS(protocol, mesh.import(peer, theirs));
    mesh.signal(peer, 20);
    mesh.wait(peer, 20, 1, waiting());
  });
}

TEST(shm_memory_that_was_not_allocated_has_no_key) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store&) {
    std::vector<char> mine(64);
    const Region& adopted = mesh.adopt(mine.data(), mine.size());
    CHECK_FAILS(invalid, mesh.key(adopted, 1 - mesh.rank()));
    mesh.signal(1 - mesh.rank(), 20);
    mesh.wait(1 - mesh.rank(), 20, 1, waiting());
  });
}

}  // namespace
}  // namespace eager::comm::test
