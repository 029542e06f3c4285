// Groups: agreement, order, threads, messages and failures.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "comm/choose.h"
#include "comm/group.h"
#include "local_fabric.h"
#include "ranks.h"
#include "testing/test.h"

using namespace eager::test;

namespace {

template <class F>
Error error_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  throw Failure("no error was raised");
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

int32_t sum_of_ones(Group& g) {
  int32_t one = 1;
  g.all_reduce(&one, 1, DType::i32, ReduceOp::sum);
  return one;
}

}  // namespace

TEST(mismatch_is_raised_on_all_ranks_and_the_group_goes_on) {
  for (const int n : {2, 3, 8, 10}) {
    LocalWorld world(n);
    world.run_group([&](Group& g) {
      std::vector<float> data(5000, 1);
      const bool odd = g.rank() == n - 1;
      const auto expect = [&](const std::string& part, const std::function<void()>& f) {
        const Error e = error_of(f);
        CHECK(e.kind == ErrorKind::mismatch);
        CHECK(has(e.what(), "rank " + std::to_string(n - 1)) && has(e.what(), "rank 0"));
        CHECK(has(e.what(), part));
        CHECK(sum_of_ones(g) == n);
      };
      expect("4999 x float32",
             [&] { g.all_reduce(data.data(), odd ? 4999 : 5000, DType::f32, ReduceOp::sum); });
      expect("int32",
             [&] { g.all_reduce(data.data(), 3, odd ? DType::i32 : DType::f32, ReduceOp::sum); });
      expect("max", [&] {
        g.all_reduce(data.data(), 3, DType::f32, odd ? ReduceOp::max : ReduceOp::sum);
      });
      expect("root 1", [&] { g.broadcast(data.data(), 8, odd ? 1 : 0); });
      expect("barrier()", [&] {
        odd ? g.barrier() : g.all_reduce(data.data(), 5000, DType::f32, ReduceOp::sum);
      });
      expect("all_gather(7 bytes)", [&] {
        std::vector<float> all(data.size() * size_t(n));
        odd ? g.all_gather(data.data(), all.data(), 7)
            : g.reduce_scatter(all.data(), data.data(), 5000, DType::f32, ReduceOp::sum);
      });
    });
  }
}

TEST(mismatched_sizes_of_all_to_all_are_raised_on_all_ranks) {
  for (const int n : {2, 4, 9}) {
    LocalWorld world(n);
    world.run_group([&](Group& g) {
      std::vector<size_t> sizes(size_t(n), 4), wrong = sizes;
      wrong[0] = 3;
      std::vector<std::byte> in(size_t(n) * 4), out(size_t(n) * 4);
      const Error e = error_of(
          [&] { g.all_to_all(in.data(), g.rank() == n - 1 ? wrong : sizes, out.data(), sizes); });
      CHECK(e.kind == ErrorKind::mismatch);
      if (g.rank() == 0) CHECK(has(e.what(), "sends 3 bytes to rank 0"));
      CHECK(sum_of_ones(g) == n);
    });
  }
}

TEST(groups_with_different_options_do_not_form) {
  LocalWorld world(2);
  std::atomic<int> refused{0};
  world.run([&](int rank) {
    GroupOptions options;
    options.table = rank ? "mapped - - ring" : "";
    const Error e = error_of(
        [&] { Group(world.fabric(rank), {0, 1}, 0, world.exchange("a", 2, rank), options); });
    if (e.kind == ErrorKind::mismatch) ++refused;
  });
  CHECK(refused == 2);
}

TEST(arguments_are_checked) {
  LocalWorld world(2);
  const auto unused = [](const std::string&) { return std::vector<std::string>(); };
  for (const std::vector<int>& ranks : {std::vector<int>{1}, {1, 0}, {0, 0}, {0, 2}, {}}) {
    const Error e = error_of([&] { Group(world.fabric(0), ranks, 0, unused); });
    CHECK(e.kind == ErrorKind::invalid);
  }
  CHECK(error_of([&] { Group(world.fabric(0), {0}, kGroups, unused); }).kind == ErrorKind::invalid);
  GroupOptions options;
  options.algorithm = "quantum";
  const Error e = error_of([&] { Group(world.fabric(0), {0}, 0, unused, options); });
  CHECK(has(e.what(), "one_shot, direct, ring"));
  world.run_group([&](Group& g) {
    int32_t x = 0;
    CHECK(error_of([&] { g.broadcast(&x, 4, 2); }).kind == ErrorKind::invalid);
    CHECK(error_of([&] { g.send(&x, 4, g.rank()); }).kind == ErrorKind::invalid);
    CHECK(error_of([&] { g.all_reduce(&x, 1, DType::i32, ReduceOp::avg); }).kind ==
          ErrorKind::invalid);
    CHECK(error_of([&] { g.all_to_all(&x, {4}, &x, {4, 4}); }).kind == ErrorKind::invalid);
    const Region& region = world.fabric(g.rank()).allocate(100);
    CHECK(error_of([&] { g.plan_all_reduce(region, 0, 26, DType::f32, ReduceOp::sum); }).kind ==
          ErrorKind::invalid);
    CHECK(error_of([&] { g.plan_all_gather(region, 101, 0); }).kind == ErrorKind::invalid);
    const auto plan = g.plan_all_reduce(region, 0, 25, DType::f32, ReduceOp::sum);
    CHECK(error_of([&] { plan->finish(); }).kind == ErrorKind::invalid);
    plan->start();
    CHECK(error_of([&] { plan->start(); }).kind == ErrorKind::invalid);
    plan->finish();
  });
}

TEST(the_table_is_parsed_and_the_first_rule_wins) {
  const Table table("# comment\nmapped 4 100 ring  # more\n\nnetwork - - one_shot\n");
  CHECK(table.choose(Reachability::mapped, 4, 100) == Algorithm::ring);
  CHECK(table.choose(Reachability::mapped, 5, 100) == Algorithm::one_shot);
  CHECK(table.choose(Reachability::mapped, 4, size_t(1) << 30) == Algorithm::direct);
  CHECK(table.choose(Reachability::copied, 2, size_t(1) << 30) == Algorithm::direct);
  CHECK(table.choose(Reachability::network, 64, size_t(1) << 30) == Algorithm::one_shot);
  for (const char* bad : {"mapped 4 100", "mapped x 100 ring", "shm 4 100 ring",
                          "mapped 4 100 fast", "mapped 4 100 ring 5", "mapped -1 5 ring"}) {
    CHECK(error_of([&] { Table table(bad); }).kind == ErrorKind::invalid);
  }
}

TEST(submitted_work_runs_in_order_and_before_later_calls) {
  LocalWorld world(3);
  world.run_group([&](Group& g) {
    std::vector<int32_t> data(1000, 1);
    std::vector<int> order;
    std::vector<std::shared_ptr<Work>> works;
    for (int k = 0; k < 5; ++k) {
      works.push_back(g.submit([&, k] {
        g.all_reduce(data.data(), data.size(), DType::i32, ReduceOp::sum);
        order.push_back(k);
      }));
    }
    g.barrier();  // runs after them
    CHECK(order == std::vector<int>({0, 1, 2, 3, 4}));
    for (const auto& work : works) {
      CHECK(work->wait(std::chrono::seconds(60)));
      CHECK(work->done() && !work->exception());
    }
    for (const int32_t x : data) CHECK(x == 243);
    const auto failing = g.submit([] { throw std::runtime_error("mine"); });
    bool thrown = false;
    try {
      failing->wait(std::chrono::seconds(60));
    } catch (const std::runtime_error& e) {
      thrown = std::string(e.what()) == "mine";
    }
    CHECK(thrown && failing->done() && failing->exception());
    CHECK(sum_of_ones(g) == 3);
  });
}

TEST(waiting_for_work_can_time_out) {
  LocalWorld world(2);
  world.run_group([&](Group& g) {
    std::atomic<bool> go{false};
    const auto work = g.submit([&] {
      while (!go) std::this_thread::yield();
    });
    CHECK(!work->wait(std::chrono::milliseconds(1)));
    CHECK(!work->done());
    go = true;
    CHECK(work->wait(Duration::max()));
  });
}

TEST(groups_work_at_the_same_time_from_several_threads) {
  for (const bool mapped : {true, false}) {
    LocalWorld world(3, {mapped, !mapped, 0});
    world.run([&](int rank) {
      std::vector<std::unique_ptr<Group>> groups;
      std::vector<std::vector<int>> members = {{0, 1, 2}, {0, 2}, {0, 1, 2}, {1, 2}};
      for (uint32_t id = 0; id < members.size(); ++id) {
        const std::vector<int>& ranks = members[id];
        const auto at = std::find(ranks.begin(), ranks.end(), rank);
        if (at == ranks.end()) continue;
        groups.push_back(std::make_unique<Group>(
            world.fabric(rank), ranks, id,
            world.exchange("g" + std::to_string(id), int(ranks.size()), int(at - ranks.begin()))));
      }
      std::vector<std::thread> threads;
      std::atomic<int> right{0};
      for (auto& group : groups) {
        threads.emplace_back([&right, g = group.get()] {
          bool good = true;
          for (int k = 0; k < 20; ++k) {
            std::vector<int32_t> data(size_t(1 + k * 997), int32_t(g->id() + 1));
            g->all_reduce(data.data(), data.size(), DType::i32, ReduceOp::sum);
            for (const int32_t x : data) good = good && x == int32_t(g->id() + 1) * g->size();
          }
          right += good;
        });
      }
      for (std::thread& t : threads) t.join();
      CHECK(right == int(groups.size()));
      for (auto& group : groups) group->barrier();
    });
  }
}

TEST(ids_can_be_used_again) {
  LocalWorld world(2, {false, true, 0});
  for (int k = 0; k < 5; ++k) {
    world.run_group([&](Group& g) {
      std::vector<int32_t> data(size_t(300000), 1);
      g.all_reduce(data.data(), data.size(), DType::i32, ReduceOp::sum);
      CHECK(data[299999] == 2);
      CHECK(sum_of_ones(g) == 2);
    });
  }
}

TEST(messages_are_matched_by_tag_and_source) {
  for (const bool mapped : {true, false}) {
    LocalWorld world(3, {mapped, !mapped, 0});
    world.run_group([&](Group& g) {
      for (const size_t bytes : {0, 1, 1000, 300000}) {
        std::vector<uint8_t> a(bytes, uint8_t(g.rank() + 1)), b(bytes, 77), c(bytes);
        if (g.rank() == 0) {
          const auto first = g.isend(a.data(), bytes, 2, 5);
          const auto second = g.isend(b.data(), bytes, 2, 6);
          CHECK(first->wait(std::chrono::seconds(60)) && second->wait(std::chrono::seconds(60)));
        } else if (g.rank() == 1) {
          g.send(a.data(), bytes, 2, 5);
        } else {
          CHECK(g.recv(c.data(), bytes, 0, 6) == bytes);  // before the one with tag 5
          CHECK(c == b);
          int seen = 0, from = -1;
          for (int k = 0; k < 2; ++k) {
            CHECK(g.recv(c.data(), bytes, -1, 5, &from) == bytes);
            CHECK(c == std::vector<uint8_t>(bytes, uint8_t(from + 1)));
            seen += from + 1;
          }
          CHECK(seen == 3);
        }
        g.barrier();
      }
    });
  }
}

TEST(messages_land_in_registered_memory) {
  LocalWorld world(2, {false, true, 0});
  world.run_group([&](Group& g) {
    Fabric& fabric = world.fabric(g.rank());
    const size_t bytes = 1 << 20;
    const Region& region = fabric.allocate(bytes + 16);
    if (g.rank() == 0) {
      std::fill(region.base, region.base + bytes, std::byte{9});
      g.send(region.base, bytes, 1);
    } else {
      CHECK(g.recv(region.base + 16, bytes, 0) == bytes);
      for (size_t i = 0; i < bytes; ++i) CHECK(region.base[16 + i] == std::byte{9});
      CHECK(fabric.stats().staged_bytes <= 64 << 10);  // what came before the answer
    }
    g.barrier();
    fabric.release(region);
  });
}

TEST(both_may_send_before_they_receive) {
  LocalWorld world(2);
  world.run_group([&](Group& g) {
    std::vector<int32_t> mine(100000, g.rank()), theirs(100000);
    g.send(mine.data(), mine.size() * 4, 1 - g.rank());
    g.recv(theirs.data(), theirs.size() * 4, 1 - g.rank());
    CHECK(theirs == std::vector<int32_t>(100000, 1 - g.rank()));
    // The same through lanes, receiving first.
    const auto in = g.irecv(mine.data(), mine.size() * 4, 1 - g.rank());
    const auto out = g.isend(theirs.data(), theirs.size() * 4, 1 - g.rank());
    CHECK(in->wait(std::chrono::seconds(60)) && out->wait(std::chrono::seconds(60)));
    CHECK(mine == std::vector<int32_t>(100000, g.rank()));
  });
}

TEST(a_message_that_is_too_long_is_refused_on_both_sides) {
  LocalWorld world(2);
  world.run_group([&](Group& g) {
    std::vector<std::byte> data(1000);
    const Error e = error_of(
        [&] { g.rank() ? g.send(data.data(), 1000, 0) : void(g.recv(data.data(), 10, 1)); });
    CHECK(e.kind == ErrorKind::mismatch && has(e.what(), "1000"));
    CHECK(sum_of_ones(g) == 2);
    if (g.rank()) {
      g.send(data.data(), 10, 0);
    } else {
      CHECK(g.recv(data.data(), 1000, 1) == 10);
    }
  });
}

TEST(a_lost_rank_breaks_the_group) {
  LocalWorld world(3);
  std::atomic<int> noticed{0};
  world.run([&](int rank) {
    Group g(world.fabric(rank), {0, 1, 2}, 0, world.exchange("g", 3, rank));
    g.barrier();
    if (rank == 1) {
      world.lose(1);
      return;
    }
    std::vector<float> data(100000);
    const auto reduce = [&] { g.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::sum); };
    const Error e = error_of(reduce);
    CHECK(e.kind == ErrorKind::peer_lost && e.peer == 1);
    const Error again = error_of(reduce);
    CHECK(again.kind == ErrorKind::peer_lost && again.peer == 1 && has(again.what(), "broken"));
    CHECK(error_of([&] { g.recv(data.data(), 4, -1); }).kind == ErrorKind::peer_lost);
    ++noticed;
  });
  CHECK(noticed == 2);
}

TEST(a_rank_that_does_not_come_is_a_timeout) {
  LocalWorld world(2);
  std::atomic<bool> over{false};
  world.run([&](int rank) {
    Group g(world.fabric(rank), {0, 1}, 0, world.exchange("g", 2, rank));
    g.barrier();
    if (rank == 0) {
      g.set_timeout(std::chrono::milliseconds(50));
      CHECK(error_of([&] { g.barrier(); }).kind == ErrorKind::timeout);
      CHECK(error_of([&] { g.barrier(); }).kind == ErrorKind::timeout);
      over = true;
    }
    while (!over) std::this_thread::yield();
  });
  world.run([&](int rank) {
    Group g(world.fabric(rank), {0, 1}, 1, world.exchange("h", 2, rank));
    g.set_timeout(std::chrono::milliseconds(200));
    if (rank == 0) CHECK(error_of([&] { g.recv(nullptr, 0, -1); }).kind == ErrorKind::timeout);
  });
}

TEST(groups_on_a_real_mesh) {
  for (const char* transport : {"shm", "tcp"}) {
    eager::comm::test::with_meshes(
        3, eager::comm::test::forced(transport), [&](Mesh& mesh, Store& store) {
          uint32_t id = 0;
          for (const char* algorithm : {"", "one_shot", "direct", "ring", "halving_doubling"}) {
            GroupOptions options;
            options.algorithm = algorithm;
            const std::string name = "group" + std::to_string(id);
            Group g(mesh, {0, 1, 2}, id++, exchange_through(store, name, mesh.rank(), 3), options);
            for (const size_t count : {1, 1001, 300007}) {
              const Region& region = mesh.allocate(count * 4);
              std::vector<int32_t> heap(count, g.rank() + 1);
              auto* shared = reinterpret_cast<int32_t*>(region.base);
              std::copy(heap.begin(), heap.end(), shared);
              g.all_reduce(heap.data(), count, DType::i32, ReduceOp::sum);
              g.all_reduce(shared, count, DType::i32, ReduceOp::sum);
              const auto plan = g.plan_all_reduce(region, 0, count, DType::i32, ReduceOp::sum);
              plan->start();
              plan->finish();
              CHECK(heap == std::vector<int32_t>(count, 6));
              CHECK(std::all_of(shared, shared + count, [](int32_t x) { return x == 18; }));
              if (g.rank() == 0) {
                g.send(shared, count * 4, 2);
              } else if (g.rank() == 2) {
                CHECK(g.recv(heap.data(), count * 4, 0) == count * 4 && heap[count - 1] == 18);
              }
              g.barrier();
              mesh.release(region);
            }
          }
        });
  }
}

// Rank 2 leaves; rank 0 finds that out by a put, and rank 1, which waits for rank 0, from rank 0.
TEST(a_put_that_fails_ends_the_waits_of_others) {
  eager::comm::test::with_meshes(3, nullptr, [](Mesh& mesh, Store& store) {
    Group g(mesh, {0, 1, 2}, 0, exchange_through(store, "g", mesh.rank(), 3));
    g.barrier();
    if (mesh.rank() == 2) return;
    char data[1000] = {};
    const auto collective = [&] {
      if (mesh.rank() == 1) return void(g.recv(data, 1, 0));
      g.all_reduce(data, sizeof data, DType::i8, ReduceOp::sum);
    };
    if (mesh.rank() == 0) {
      CHECK_FAILS(peer_lost, mesh.wait(2, 100, 1,
                                       eager::comm::test::waiting(std::chrono::seconds(30), "test",
                                                                  7)));  // it has left
      store.get("waits");
    } else {
      store.set("waits", "");
    }
    const Error e = error_of(collective);
    CHECK(has(e.what(), mesh.rank() == 0 ? "in flight: all_reduce" : "(rank 0 says)"));
    CHECK(e.kind == ErrorKind::peer_lost && e.peer == 2);
  });
}

TEST(introductions_are_checked) {
  for (const std::string& bad : {std::string(), std::string("short"), std::string(136, 'x')}) {
    LocalWorld world(2);
    const Error e = error_of([&] {
      Group(world.fabric(0), {0, 1}, 0,
            [&](const std::string& mine) { return std::vector<std::string>{mine, bad}; });
    });
    CHECK(e.kind == ErrorKind::protocol);
    CHECK(static_cast<LocalFabric&>(world.fabric(0)).regions() == 0);  // nothing is left behind
  }
}
