// Ranks join, put into each other's memory and wait, over each transport.
#include <cstring>

#include "comm/auth.h"
#include "comm/control.h"
#include "comm/frame.h"
#include "comm/join_messages.h"
#include "comm/mesh.h"
#include "comm/socket.h"
#include "ranks.h"

namespace eager::comm::test {
namespace {

std::byte pattern(int from, int to, size_t i) {
  return static_cast<std::byte>((i * 7 + static_cast<size_t>(from * 31 + to * 17)) & 0xff);
}

// Everyone puts into everyone's region, itself included, and checks what came.
void all_to_all(Mesh& mesh, Store& store, size_t bytes) {
  const int n = mesh.size(), me = mesh.rank();
  const Region& region = mesh.allocate(bytes * static_cast<size_t>(n));
  const std::vector<Target> targets = exchange(mesh, store, region, "all_to_all");
  std::vector<std::byte> source(bytes);
  for (uint32_t round = 1; round <= 3; ++round) {
    for (int p = 0; p < n; ++p) {
      for (size_t i = 0; i < bytes; ++i) source[i] = pattern(me, p, i + round);
      const size_t half = bytes / 2;
      const Piece pieces[] = {{source.data(), half}, {source.data() + half, bytes - half}};
      const Target& t = targets[static_cast<size_t>(p)];
      const uint64_t ticket = mesh.put(t, bytes * static_cast<size_t>(me), pieces, 2, 20);
      mesh.sent(p, ticket, waiting());
    }
    for (int p = 0; p < n; ++p) {
      mesh.wait(p, 20, round, waiting());
      CHECK(mesh.arrived(p, 20) == round);
      const std::byte* from = region.base + bytes * static_cast<size_t>(p);
      for (size_t i = 0; i < bytes; ++i) CHECK(from[i] == pattern(p, me, i + round));
    }
    for (int p = 0; p < n; ++p) mesh.signal(p, 21);  // read: may be written again
    for (int p = 0; p < n; ++p) mesh.wait(p, 21, round, waiting());
  }
  CHECK(mesh.stats().put_bytes == 3 * bytes * static_cast<size_t>(n));
}

TEST(mesh_puts_between_all_ranks_over_shm) {
  with_meshes(3, nullptr, [](Mesh& mesh, Store& store) {
    for (int p = 0; p < 3; ++p)
      CHECK(std::string(mesh.transport(p)) == (p == mesh.rank() ? "self" : "shm"));
    CHECK(mesh.host(2) == 0);
    all_to_all(mesh, store, 10007);
  });
}

TEST(mesh_puts_between_all_ranks_over_tcp) {
  with_meshes(3, forced("tcp"), [](Mesh& mesh, Store& store) {
    const int p = (mesh.rank() + 1) % 3;
    CHECK(std::string(mesh.transport(p)) == "tcp");
    CHECK(mesh.reason(p) == "demanded");
    all_to_all(mesh, store, 300001);
  });
}

TEST(mesh_of_one_rank_needs_no_store_traffic) {
  with_meshes(1, nullptr, [](Mesh& mesh, Store& store) {
    CHECK(store.size() == 0);
    CHECK(mesh.size() == 1 && mesh.host(0) == 0);
    all_to_all(mesh, store, 4096);
    CHECK_FAILS(timeout, mesh.wait(0, 30, 1, waiting(1ms)));
  });
}

// Pretended hosts: ranks 0 and 2 on one, 1 on another.
TEST(mesh_chooses_shm_within_a_host_and_tcp_between_hosts) {
  const auto setup = [](MeshOptions& o) { o.host = o.rank == 1 ? "b" : "a"; };
  with_meshes(3, setup, [](Mesh& mesh, Store& store) {
    CHECK(mesh.host(0) == 0 && mesh.host(1) == 1 && mesh.host(2) == 0);
    for (int p = 0; p < 3; ++p) {
      if (p == mesh.rank()) continue;
      const bool same = (p == 1) == (mesh.rank() == 1);
      CHECK(std::string(mesh.transport(p)) == (same ? "shm" : "tcp"));
    }
    all_to_all(mesh, store, 1000);
  });
}

TEST(mesh_refuses_shm_between_hosts) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = Meeting::options(r, 2);
    o.transport = "shm";
    o.host = std::to_string(r);
    CHECK_FAILS(invalid, Mesh(o, store));
  });
}

TEST(mesh_refuses_different_demands_on_all_ranks) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = Meeting::options(r, 2);
    o.transport = r == 0 ? "tcp" : "shm";
    try {
      Mesh mesh(o, store);
      CHECK(false);
    } catch (const Error& e) {
      CHECK(e.kind == ErrorKind::invalid || e.kind == ErrorKind::peer_lost);
      CHECK(std::string(e.what()).find("different transports") != std::string::npos);
    }
  });
}

TEST(mesh_refuses_bad_options) {
  const Meeting meeting;
  Store store = meeting.store();
  const auto with = [&](const Setup& change) {
    MeshOptions o = Meeting::options(0, 1);
    change(o);
    Mesh mesh(o, store);
  };
  CHECK_FAILS(invalid, with([](MeshOptions& o) { o.rank = 1; }));
  CHECK_FAILS(invalid, with([](MeshOptions& o) { o.size = 0; }));
  CHECK_FAILS(invalid, with([](MeshOptions& o) { o.tcp_sockets = 0; }));
  CHECK_FAILS(invalid, with([](MeshOptions& o) { o.heartbeat = 1ms; }));
  CHECK_FAILS(invalid, with([](MeshOptions& o) {
                o.size = 2;
                o.transport = "pigeon";
              }));
}

TEST(mesh_names_the_ranks_that_did_not_come) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = Meeting::options(r, 4);  // ranks 2 and 3 stay away
    o.timeout = 500ms;
    try {
      Mesh mesh(o, store);
      CHECK(false);
    } catch (const Error& e) {
      CHECK(e.kind == ErrorKind::timeout);
      CHECK(std::string(e.what()).find("missing: rank 2, 3") != std::string::npos);
    }
  });
}

TEST(mesh_with_another_secret_stays_out) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = Meeting::options(r, 2);
    o.timeout = 1s;
    if (r == 1) o.secret = "a guess";
    try {
      Mesh mesh(o, store);
      CHECK(false);
    } catch (const Error& e) {
      CHECK(e.kind == (r == 1 ? ErrorKind::authentication : ErrorKind::timeout));
    }
  });
}

TEST(mesh_joins_while_strangers_hang_on) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    std::vector<Socket> strangers;
    if (r == 1) {
      // What rank 0 published: host, address, name of its Unix socket, port.
      const std::string bytes = store.get("test/mesh/0");
      Reader card(bytes);
      card.string(1024);
      const std::string address = card.string(1024), name = card.string(1024);
      const uint16_t port = card.u16();
      const Deadline limit = Clock::now() + 30s;
      for (size_t i = 0; i < 10; ++i) {
        strangers.push_back(Socket::connect(address, port, limit));
        strangers.push_back(Socket::connect_local(name, limit));
        const std::string noise(i * 37, 'x');  // the first say nothing at all
        for (size_t k = 2 * i; k < 2 * i + 2; ++k)
          strangers[k].write(noise.data(), noise.size(), limit);
      }
    }
    Mesh mesh(Meeting::options(r, 2), store);
    mesh.signal(1 - r, 20);
    mesh.wait(1 - r, 20, 1, waiting());
    CHECK(mesh.arrived(1 - r, 20) == 1);
  });
}

// Rank 1 is played by hand: it gets as far as its offer of a link, then it goes away or says that
// it gives up.  Rank 0, which waits for its data connections, must not wait for the deadline.
TEST(mesh_notices_ranks_that_die_while_links_are_joined) {
  for (const bool dies : {true, false}) {
    const Meeting meeting;
    in_threads(2, [&](int r) {
      Store store = meeting.store();
      MeshOptions o = Meeting::options(r, 2);
      o.transport = "tcp";
      if (r == 0) {
        const auto begun = Clock::now();
        CHECK_FAILS(peer_lost, Mesh(o, store));
        CHECK(Clock::now() - begun < 20s);
        return;
      }
      const Card card = Card::decode(store.get("test/mesh/0"));
      Socket socket = Socket::connect(card.address, card.port, Clock::now() + 30s);
      authenticate(socket, Role::connector, {"secret", "mesh test/ of 2", 1}, Clock::now() + 30s);
      Control control(std::move(socket), false);
      Hello hello;
      hello.abilities.forced = "tcp";
      control.send(Message::hello, hello.encode());
      control.send(Message::offer, Proposal{"tcp", TcpOffer().encode(false)}.encode());
      while (true) {
        const std::optional<Incoming> in = control.receive();
        if (in && in->type == Message::offer) break;
        std::this_thread::sleep_for(1ms);
      }
      std::this_thread::sleep_for(50ms);
      if (dies) return;
      control.send(Message::failed, Writer().u32(UINT32_MAX).u32(1).string("it gives up").take());
      std::optional<Incoming> in;
      while (!in) in = control.receive();  // rank 0 gives up too
      CHECK(in->type == Message::failed);
    });
  }
}

TEST(mesh_of_a_second_incarnation_in_one_store) {
  const Meeting meeting;
  in_threads(2, [&](int r) {
    Store store = meeting.store();
    for (const char* prefix : {"first/", "second/"}) {
      MeshOptions o = Meeting::options(r, 2);
      o.prefix = prefix;
      Mesh mesh(o, store);
      mesh.signal(1 - r, 20);
      mesh.wait(1 - r, 20, 1, waiting());
      CHECK(mesh.arrived(1 - r, 20) == 1);
    }
  });
}

TEST(mesh_checks_what_puts_are_given) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store& store) {
    const Region& region = mesh.allocate(100);
    CHECK(region.length == 100);
    const int peer = 1 - mesh.rank();
    const Target t = exchange(mesh, store, region, "checks")[static_cast<size_t>(peer)];
    const char data[101] = {};
    const auto put = [&](size_t offset, size_t length, uint32_t counter) {
      const Piece piece{data, length};
      mesh.put(t, offset, &piece, 1, counter);
    };
    CHECK_FAILS(invalid, put(0, 101, 20));
    CHECK_FAILS(invalid, put(100, 1, 20));
    CHECK_FAILS(invalid, put(SIZE_MAX, 2, 20));
    CHECK_FAILS(invalid, put(0, 1, kCounters));
    CHECK_FAILS(invalid, mesh.wait(2, 20, 1, waiting()));
    CHECK_FAILS(invalid, mesh.arrived(0, kCounters));
    CHECK_FAILS(invalid, mesh.signal(-1, 20));
    CHECK_FAILS(invalid, mesh.release(Region{}));
    CHECK_FAILS(protocol, mesh.import(peer, Key{}));
    CHECK_FAILS(protocol, mesh.import(peer, mesh.key(region, peer)));  // my own
    CHECK_FAILS(protocol, mesh.import(mesh.rank(), Key{}));
    put(0, 100, 20);
    mesh.wait(peer, 20, 1, waiting());
  });
}

TEST(mesh_finds_regions_by_address) {
  with_meshes(1, nullptr, [](Mesh& mesh, Store&) {
    const Region& a = mesh.allocate(10000);
    const Region& b = mesh.allocate(1);
    for (size_t i = 0; i < a.length; ++i) CHECK(a.base[i] == std::byte{0});
    CHECK(mesh.find(a.base, 10000) == &a);
    CHECK(mesh.find(a.base + 9999, 1) == &a);
    CHECK(!mesh.find(a.base, 10001) && !mesh.find(a.base - 1, 1));
    CHECK(!mesh.find(a.base + 1, SIZE_MAX));
    CHECK(mesh.find(b.base, 1) == &b);
    std::vector<char> mine(100);
    CHECK(!mesh.find(mine.data(), 1));
    CHECK_FAILS(invalid, mesh.adopt(a.base + 10, 10));
    const Region& adopted = mesh.adopt(mine.data(), mine.size());
    CHECK(mesh.find(mine.data(), 100) == &adopted);
    const std::byte* const at = a.base;
    mesh.release(a);
    CHECK(!mesh.find(at, 1));
    CHECK(mesh.find(b.base, 1) == &b);
    CHECK_FAILS(system, mesh.allocate(size_t(1) << 50));
  });
}

TEST(mesh_waits_of_many_threads_for_one_counter) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store&) {
    const int peer = 1 - mesh.rank();
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; ++t)
      threads.emplace_back([&mesh, peer, t] {
        for (uint32_t i = 1; i <= 100; ++i) {
          mesh.signal(peer, 20 + t);
          Waiting w = waiting();
          w.patient = true;
          mesh.wait(peer, 20 + t, i, w);
        }
      });
    for (std::thread& t : threads) t.join();
  });
}

TEST(mesh_tells_processes_apart_from_their_children) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store&) {
    const int peer = 1 - mesh.rank();
    if (mesh.rank() == 0) {
      const pid_t pid = fork();
      if (pid == 0) {
        try {
          mesh.signal(peer, 20);
        } catch (const Error& e) {
          _exit(e.kind == ErrorKind::invalid ? 7 : 8);
        }
        _exit(9);
      }
      int status = 0;
      CHECK(waitpid(pid, &status, 0) == pid);
      CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    mesh.signal(peer, 20);
    mesh.wait(peer, 20, 1, waiting());
    CHECK(mesh.arrived(peer, 20) == 1);
  });
}

}  // namespace
}  // namespace eager::comm::test
