// Ranks that die, hang, leave or are cut off: who notices, and whom they blame.
#include <sys/socket.h>

#include <cstring>

#include "comm/liveness.h"
#include "ranks.h"

namespace eager::comm::test {
namespace {

// Waits for `peer` in vain; the rank that is blamed, or -1 for a time-out without blame.
int blamed(Mesh& mesh, int peer, Duration limit, std::string* text = nullptr) {
  try {
    mesh.wait(peer, 100, 1, waiting(limit, "all_reduce", 3));
  } catch (const Error& e) {
    if (text) *text = e.what();
    CHECK(e.kind == ErrorKind::peer_lost || e.kind == ErrorKind::timeout);
    CHECK(std::string(e.what()).find("all_reduce, call 0 of group 3") != std::string::npos);
    return e.peer;
  }
  eager::test::failed(__FILE__, __LINE__, "the wait ended");
}

// Ranks tell the test through the store what they saw.
void tell(Store& store, Mesh& mesh, int peer, const std::string& text) {
  store.set("saw/" + std::to_string(mesh.rank()), std::to_string(peer) + " " + text);
}
std::string saw(Store& store, int rank) { return store.get("saw/" + std::to_string(rank)); }
bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// All wait for the next rank; the last rank waits for nobody, until the test ends it.
void wait_in_a_row(Mesh& mesh, Store& store) {
  const int next = mesh.rank() + 1;
  if (next < mesh.size()) {
    std::string text;
    const int peer = blamed(mesh, next, 60s, &text);
    tell(store, mesh, peer, text);
    store.get("end");
  } else {
    store.set("waiting", "");
    store.get("end");
  }
}

TEST(liveness_killed_rank_is_noticed_and_blamed_by_all) {
  for (const char* transport : {"shm", "tcp"}) {
    const auto setup = [&](MeshOptions& o) {
      o.transport = transport;
      o.heartbeat = 60s;  // its end must tell, not its silence
    };
    Job job(4, setup, wait_in_a_row);
    Store store = job.store();
    store.get("waiting");
    job.signal(3, SIGKILL);
    CHECK(job.join(3) == 256 + SIGKILL);
    for (int r = 0; r < 3; ++r) {
      const std::string text = saw(store, r);
      CHECK(contains(text, "3 all_reduce: rank 3 is lost: it"));
    }
    store.set("end", "");
    for (int r = 0; r < 3; ++r) CHECK(job.join(r) == 0);
  }
}

TEST(liveness_killed_rank_is_noticed_though_its_child_lives) {
  const auto setup = [](MeshOptions& o) { o.heartbeat = 60s; };
  int held[2];  // the grandchild waits for the end of this pipe
  CHECK(pipe(held) == 0);
  {
    Job job(2, setup, [&](Mesh& mesh, Store& store) {
      if (mesh.rank() == 1 && fork() == 0) {
        close(held[1]);
        char c;
        _exit(static_cast<int>(read(held[0], &c, 1)));
      }
      wait_in_a_row(mesh, store);
    });
    close(held[0]);
    Store store = job.store();
    store.get("waiting");
    job.signal(1, SIGKILL);
    CHECK(contains(saw(store, 0), "1 all_reduce: rank 1 is lost: its process ended"));
    store.set("end", "");
    CHECK(job.join(0) == 0);
  }
  close(held[1]);
}

TEST(liveness_stopped_rank_is_noticed_by_its_silence) {
  const auto setup = [](MeshOptions& o) { o.heartbeat = 1s; };
  Job job(3, setup, wait_in_a_row);
  Store store = job.store();
  store.get("waiting");
  job.signal(2, SIGSTOP);
  for (int r = 0; r < 2; ++r) {
    const std::string text = saw(store, r);
    CHECK(contains(text, "2 all_reduce: rank 2 is lost: nothing was heard from it for 1000 ms"));
  }
  job.signal(2, SIGCONT);
  store.set("end", "");
  for (int r = 0; r < 3; ++r) CHECK(job.join(r) == 0);
}

TEST(liveness_rank_cut_off_loses_the_others) {
  const auto setup = [](MeshOptions& o) {
    o.transport = "tcp";
    o.heartbeat = 60s;
  };
  Job job(2, setup, [](Mesh& mesh, Store& store) {
    if (mesh.rank() == 1) {
      for (int fd = 3; fd < 200; ++fd) shutdown(fd, SHUT_RDWR);  // every connection
      CHECK(blamed(mesh, 0, 30s) == 0);
    } else {
      tell(store, mesh, blamed(mesh, 1, 30s), "");
    }
  });
  Store store = job.store();
  CHECK(saw(store, 0) == "1 ");
  CHECK(job.join(0) == 0 && job.join(1) == 0);
}

TEST(liveness_rank_that_leaves_is_told_from_one_that_dies) {
  for (const char* transport : {"shm", "tcp"}) {
    with_meshes(2, forced(transport), [](Mesh& mesh, Store& store) {
      const int r = mesh.rank();
      const Region& region = mesh.allocate(1 << 20);
      const std::vector<Target> targets = exchange(mesh, store, region, "leave");
      if (r == 1) {  // its last put arrives, although it leaves at once
        const std::vector<char> data(1 << 20, 'x');
        const Piece piece{data.data(), data.size()};
        mesh.put(targets[0], 0, &piece, 1, 99);
        return;
      }
      mesh.wait(1, 99, 1, waiting());
      CHECK(region.base[(1 << 20) - 1] == std::byte{'x'});
      std::string text;
      CHECK(blamed(mesh, 1, 30s, &text) == 1);
      CHECK(contains(text, "it left the job"));
      CHECK(mesh.lost() == -1);
      mesh.signal(1, 99);  // it needs no notice any more
      const Piece piece{"x", 1};
      CHECK_FAILS(peer_lost, mesh.put(targets[1], 0, &piece, 1, 99));
    });
  }
}

// The last put of a rank arrives, and its memory is known, whenever this rank looks.
TEST(liveness_memory_of_a_rank_that_left_can_be_imported) {
  for (const char* transport : {"shm", "tcp"}) {
    with_meshes(2, forced(transport), [](Mesh& mesh, Store& store) {
      const int r = mesh.rank();
      const Key mine = mesh.key(mesh.allocate(4096), 1 - r);
      if (r == 1) {
        store.set("key", std::string(reinterpret_cast<const char*>(mine.data()), mine.size()));
        return;
      }
      CHECK(blamed(mesh, 1, 30s) == 1);  // it has left
      const std::string text = store.get("key");
      Key key;
      std::memcpy(key.data(), text.data(), key.size());
      const Target target = mesh.import(1, key);
      CHECK(target.length == 4096);
      const Piece piece{"x", 1};
      CHECK_FAILS(peer_lost, mesh.put(target, 0, &piece, 1, 99));
    });
  }
}

// Rank 0 blames rank 1 and leaves; rank 2, which notices only that, must not blame rank 0.
TEST(liveness_put_to_a_rank_that_gave_up_blames_whom_it_blamed) {
  for (const char* transport : {"shm", "tcp"}) {
    with_meshes(3, forced(transport), [](Mesh& mesh, Store& store) {
      const int r = mesh.rank();
      const std::vector<Target> targets = exchange(mesh, store, mesh.allocate(4096), "keys");
      if (r == 1) store.get("end");
      if (r == 0) {
        store.get("imported");
        CHECK(blamed(mesh, 1, 1s) == 1);
      }
      if (r != 2) return;
      store.set("imported", "");
      const Piece piece{"x", 1};
      int culprit = -1;
      std::string text;
      for (const auto until = Clock::now() + 30s; culprit < 0 && Clock::now() < until;) {
        try {
          mesh.put(targets[0], 0, &piece, 1, 99);
        } catch (const Error& e) {
          culprit = e.peer;
          text = e.what();
        }
        std::this_thread::sleep_for(1ms);
      }
      CHECK(culprit == 1);
      CHECK(contains(text, "did not join all_reduce") && contains(text, "(rank 0 says)"));
      store.set("end", "");
    });
  }
}

TEST(liveness_nothing_works_after_leaving) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store&) {
    mesh.leave();
    CHECK_FAILS(invalid, mesh.allocate(1));
    CHECK_FAILS(invalid, mesh.signal(1 - mesh.rank(), 99));
    CHECK_FAILS(invalid, mesh.wait(1 - mesh.rank(), 99, 1, waiting(1s)));
  });
}

TEST(liveness_rank_that_does_not_join_is_blamed_by_the_whole_chain) {
  with_meshes(4, nullptr, [](Mesh& mesh, Store& store) {
    if (mesh.rank() == 3) {
      for (int r = 0; r < 3; ++r) store.get("blamed/" + std::to_string(r));
      return;
    }
    std::string text;
    CHECK(blamed(mesh, mesh.rank() + 1, 1s, &text) == 3);
    CHECK(contains(text, "did not join all_reduce within"));
    CHECK(mesh.lost() == -1);  // it lives
    store.set("blamed/" + std::to_string(mesh.rank()), "");
  });
}

TEST(liveness_ranks_that_wait_for_each_other_blame_nobody) {
  with_meshes(3, nullptr, [](Mesh& mesh, Store& store) {
    std::string text;
    CHECK(blamed(mesh, (mesh.rank() + 1) % 3, 500ms, &text) == -1);
    store.set("done/" + std::to_string(mesh.rank()), "");
    for (int r = 0; r < 3; ++r) store.get("done/" + std::to_string(r));
  });
}

TEST(liveness_failure_of_one_group_leaves_others_alone) {
  with_meshes(2, nullptr, [](Mesh& mesh, Store& store) {
    const int peer = 1 - mesh.rank();
    if (mesh.rank() == 0) CHECK(blamed(mesh, 1, 300ms) == 1);
    store.set("gave up/" + std::to_string(mesh.rank()), "");
    store.get("gave up/0");
    if (mesh.rank() == 1) CHECK(blamed(mesh, 0, 30s) == 0);  // rank 0 gave that group up
    mesh.signal(peer, 50);
    mesh.wait(peer, 50, 1, waiting(30s, "barrier", 4));
    CHECK(mesh.arrived(peer, 50) == 1);
    CHECK(mesh.failed(3) && !mesh.failed(4));  // a new group must not get its number
  });
}

TEST(liveness_idle_ranks_are_not_lost) {
  const auto setup = [](MeshOptions& o) { o.heartbeat = 500ms; };
  with_meshes(2, setup, [](Mesh& mesh, Store&) {
    std::this_thread::sleep_for(1500ms);  // silence is the subject
    std::string why;
    CHECK(mesh.lost(&why) == -1);
  });
}

// ---- messages of strangers

TEST(liveness_heartbeats_are_checked) {
  const std::vector<WaitReport> waits{{2, 17, 1, 3000, "all_gather"}, {3, 1, 0, 1, ""}};
  uint64_t answer = 0;
  const std::string good = encode_heartbeat(5, waits);
  const std::vector<WaitReport> back = decode_heartbeat(good, 2, &answer);
  CHECK(answer == 5 && back.size() == 2 && back[0].op == "all_gather" && back[0].sequence == 17);
  CHECK(back[0].peer == 1 && back[0].group == 2 && back[0].milliseconds == 3000);
  CHECK_FAILS(protocol, decode_heartbeat(good, 1, &answer));  // no rank 1
  for (size_t n = 0; n < good.size(); ++n)
    CHECK_FAILS(protocol, decode_heartbeat(good.substr(0, n), 2, &answer));
  CHECK_FAILS(protocol, decode_heartbeat(good + "x", 2, &answer));
  const std::string failure = encode_failure({7, 1, "why"});
  CHECK(decode_failure(failure, 2).because == 1 && decode_failure(failure, 2).why == "why");
  CHECK_FAILS(protocol, decode_failure(failure, 1));
  CHECK_FAILS(protocol, decode_failure(failure.substr(0, 9), 2));
}

}  // namespace
}  // namespace eager::comm::test
