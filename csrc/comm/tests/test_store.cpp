// The store: semantics, waiting, deadlines, strangers, death of the server.
#include <sys/resource.h>

#include <atomic>
#include <future>
#include <thread>

#include "comm/frame.h"
#include "comm/frame_io.h"
#include "comm/socket.h"
#include "comm/store.h"
#include "comm/store_session.h"
#include "test.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

const char kSecret[] = "a secret of the tests";
constexpr auto kPatience = 60s;

struct Pair {
  StoreServer server{"127.0.0.1", 0, kSecret};
  Store store{"127.0.0.1", server.port(), kSecret, kPatience};
};

}  // namespace

TEST(store_keeps_values) {
  Pair p;
  p.store.set("key", "value");
  CHECK(p.store.get("key") == "value");
  p.store.set("key", "");
  CHECK(p.store.get("key").empty());
  const std::string odd("\0\xff\n", 3);
  p.store.set(odd, odd);
  CHECK(p.store.get(odd) == odd);
  p.store.set("", "the empty key");
  CHECK(p.store.get("") == "the empty key");
  CHECK(p.store.size() == 3);
  CHECK(p.store.remove("key"));
  CHECK(!p.store.remove("key"));
  CHECK(p.store.size() == 2);
}

TEST(store_holds_large_values) {
  Pair p;
  std::string large(StoreLimits().value_bytes, '\0');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 2654435761u >> 24);
  p.store.set("large", large);
  CHECK(p.store.get("large") == large);
  CHECK(p.store.compare_set("large", large, "small") == "small");
}

TEST(store_adds) {
  Pair p;
  CHECK(p.store.add("n", 5) == 5);
  CHECK(p.store.add("n", -7) == -2);
  CHECK(p.store.get("n") == "-2");
  p.store.set("n", "9223372036854775807");
  CHECK(p.store.add("n", 0) == INT64_MAX);
  CHECK_FAILS(invalid, p.store.add("n", 1));
  CHECK(p.store.get("n") == "9223372036854775807");
  for (const char* no : {"", "x", "1x", " 1", "9223372036854775808"}) {
    p.store.set("n", no);
    CHECK_FAILS(invalid, p.store.add("n", 1));
  }
}

TEST(store_compares_and_sets) {
  Pair p;
  CHECK(p.store.compare_set("key", "old", "new") == "old");  // missing: nothing is set
  CHECK(!p.store.check({"key"}));
  CHECK(p.store.compare_set("key", "", "first") == "first");
  CHECK(p.store.compare_set("key", "", "second") == "first");
  CHECK(p.store.compare_set("key", "first", "second") == "second");
  CHECK(p.store.get("key") == "second");
}

TEST(store_waits_for_several_keys) {
  Pair p;
  p.store.wait({}, kPatience);
  CHECK(p.store.check({}));
  p.store.set("a", "1");
  CHECK(p.store.check({"a"}) && !p.store.check({"a", "b"}));
  p.store.wait({"a"}, 0s);
  auto waiting =
      std::async(std::launch::async, [&] { p.store.wait({"a", "b", "c", "b"}, kPatience); });
  p.store.set("c", "3");
  p.store.remove("a");
  p.store.set("b", "2");
  CHECK(waiting.wait_for(20ms) == std::future_status::timeout);  // "a" has gone again
  p.store.set("a", "1");
  waiting.get();
}

TEST(store_get_waits_and_blocks_nobody) {
  Pair p;
  Store other("127.0.0.1", p.server.port(), kSecret, kPatience);
  auto first = std::async(std::launch::async, [&] { return p.store.get("key"); });
  auto second = std::async(std::launch::async, [&] { return other.get("key"); });
  p.store.set("unrelated", "x");
  CHECK(p.store.get("unrelated") == "x");
  p.store.set("key", "value");
  CHECK(first.get() == "value" && second.get() == "value");
}

TEST(store_time_out_says_what_was_awaited) {
  Pair p;
  try {
    p.store.get("some\nkey", 20ms);
    CHECK(!"returned");
  } catch (const Error& e) {
    CHECK(e.kind == ErrorKind::timeout);
    CHECK(std::string(e.what()).find("store.get: ") == 0);
    CHECK(std::string(e.what()).find("the key 'some?key'") != std::string::npos);
  }
  CHECK_FAILS(timeout, p.store.wait({"a", "b"}, 1ms));
  p.store.set_timeout(10ms);
  CHECK(p.store.timeout() == Duration(10ms));
  CHECK_FAILS(timeout, p.store.get("missing"));
  p.store.set_timeout(kPatience);
  p.store.set("some\nkey", "late");  // the time-outs left nothing behind
  CHECK(p.store.get("some\nkey") == "late");
}

TEST(store_with_no_time_at_all_gives_what_is_there) {
  Pair p;
  p.store.set("key", std::string(1 << 20, 'x'));
  for (int i = 0; i < 20; ++i) {
    CHECK(p.store.get("key", 0s).size() == 1 << 20);
    CHECK_FAILS(timeout, p.store.get("other", 0s));
  }
  CHECK_FAILS(timeout, p.store.get("other", -1s));
  CHECK(p.store.get("key", Duration::max()).size() == 1 << 20);
}

TEST(store_serves_many_threads) {
  Pair p;
  constexpr int kThreads = 6, kRounds = 50;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      Store own("127.0.0.1", p.server.port(), kSecret, kPatience);
      for (int i = 0; i < kRounds; ++i) {
        Store& store = i % 2 ? own : p.store;
        const std::string round = std::to_string(i) + "/";
        store.add("sum", 1);
        store.set(round + std::to_string(t), std::to_string(t * i));
        const int next = (t + 1) % kThreads;
        if (store.get(round + std::to_string(next)) != std::to_string(next * i)) ++wrong;
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(p.store.add("sum", 0) == kThreads * kRounds);
  CHECK(p.store.size() == kThreads * kRounds + 1);
}

TEST(store_refuses_what_is_too_long) {
  Pair p;
  const StoreLimits limits;
  const std::string key(limits.key_bytes, 'k');
  p.store.set(key, "longest");
  CHECK(p.store.get(key) == "longest");
  CHECK_FAILS(invalid, p.store.set(key + "k", ""));
  CHECK_FAILS(invalid, p.store.get(key + "k"));
  CHECK_FAILS(invalid, p.store.set("key", std::string(limits.value_bytes + 1, 'x')));
  CHECK_FAILS(invalid, p.store.check(std::vector<std::string>(kStoreKeys + 1)));
  CHECK_FAILS(invalid, p.store.check(std::vector<std::string>(kStoreKeys, key)));
  CHECK(!p.store.check(std::vector<std::string>(kStoreKeys)));
}

TEST(store_has_a_limit_in_all) {
  StoreLimits limits;
  limits.total_bytes = 100'000;
  StoreServer server("127.0.0.1", 0, kSecret, limits);
  Store store("127.0.0.1", server.port(), kSecret, kPatience);
  store.set("half", std::string(50'000, 'x'));
  CHECK_FAILS(invalid, store.set("more", std::string(50'000, 'x')));
  CHECK(!store.check({"more"}));
  store.set("half", std::string(60'000, 'y'));  // replaces
  CHECK_FAILS(invalid, store.set("half", std::string(100'001, 'y')));
  CHECK(store.get("half").size() == 60'000);
  CHECK(store.remove("half"));
  store.set("more", std::string(90'000, 'x'));
  const auto fill = [&] {  // empty values count too
    for (int i = 0; i < 1000; ++i) store.set(std::to_string(i), "");
  };
  CHECK_FAILS(invalid, fill());
}

// --- who is let in -------------------------------------------------------------------------------

TEST(store_refuses_who_does_not_know_the_secret) {
  Pair p;
  const auto open = [&](const std::string& secret, uint16_t port) {
    Store("127.0.0.1", port, secret, kPatience);
  };
  CHECK_FAILS(authentication, open("another secret", p.server.port()));
  CHECK_FAILS(authentication, open("", p.server.port()));
  StoreServer without("127.0.0.1", 0, "");
  CHECK_FAILS(authentication, open(kSecret, without.port()));
  Store store("127.0.0.1", without.port(), "", kPatience);
  store.set("key", "value");
  CHECK(store.get("key") == "value");
  try {
    open("another secret", p.server.port());
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find(kSecret) == std::string::npos);
  }
}

TEST(store_without_a_secret_listens_on_loopback_only) {
  CHECK_FAILS(authentication, StoreServer("0.0.0.0", 0, ""));
  CHECK_FAILS(authentication, StoreServer("", 0, ""));
  StoreServer everywhere("0.0.0.0", 0, kSecret);
  Store store("127.0.0.1", everywhere.port(), kSecret, kPatience);
  store.set("key", "value");
}

namespace {

Socket stranger(const StoreServer& server) {
  return Socket::connect("127.0.0.1", server.port(), Clock::now() + kPatience);
}

Socket member(const StoreServer& server) {
  Socket socket = stranger(server);
  authenticate(socket, Role::connector, {kSecret, kStoreContext, 0}, Clock::now() + kPatience);
  return socket;
}

// The server hangs up; what it said before does not matter.
bool is_dropped(Socket& socket) {
  char bytes[4096];
  try {
    while (socket.read_some(bytes, sizeof bytes, Clock::now() + kPatience) > 0) {
    }
  } catch (const Error& e) {
    return e.kind == ErrorKind::peer_lost;
  }
  return false;
}

}  // namespace

TEST(store_drops_strangers_who_talk_nonsense) {
  Pair p;
  for (const std::string& said :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(500, '\0'),
        std::string("EJA1") + std::string(500, '\xff'), encode_frame(1, "set")}) {
    Socket s = stranger(p.server);
    s.write(said.data(), said.size(), Clock::now() + kPatience);
    CHECK(is_dropped(s));
  }
  p.store.set("key", "value");
  CHECK(p.store.get("key") == "value");
}

TEST(store_drops_strangers_who_say_nothing) {
  StoreLimits limits;
  limits.handshake = 50ms;
  StoreServer server("127.0.0.1", 0, kSecret, limits);
  Store store("127.0.0.1", server.port(), kSecret, kPatience);
  Socket silent = stranger(server), slow = stranger(server);
  slow.write("EJA1", 4, Clock::now() + kPatience);
  CHECK(is_dropped(silent) && is_dropped(slow));
  store.set("key", "value");  // who has proved himself may be silent for as long as he likes
}

TEST(store_bounds_the_number_of_strangers) {
  StoreLimits limits;
  limits.strangers = 4;
  limits.handshake = 1h;
  StoreServer server("127.0.0.1", 0, kSecret, limits);
  std::vector<Socket> strangers;
  for (int i = 0; i < 12; ++i) strangers.push_back(stranger(server));
  Store store("127.0.0.1", server.port(), kSecret, kPatience);
  store.set("key", "value");
  for (int i = 0; i < 8; ++i) CHECK(is_dropped(strangers[i]));
}

TEST(store_bounds_the_number_of_connections) {
  StoreLimits limits;
  limits.connections = 2;
  StoreServer server("127.0.0.1", 0, kSecret, limits);
  Store first("127.0.0.1", server.port(), kSecret, kPatience);
  auto second = std::make_unique<Store>("127.0.0.1", server.port(), kSecret, kPatience);
  CHECK_FAILS(timeout, Store("127.0.0.1", server.port(), kSecret, 100ms));
  first.set("key", "value");
  second.reset();
  Store third("127.0.0.1", server.port(), kSecret, kPatience);
  CHECK(third.get("key") == "value");
}

TEST(store_drops_members_who_send_nonsense) {
  Pair p;
  const auto type = [](StoreRequest t) { return static_cast<uint8_t>(t); };
  const std::string number = Writer().u32(1).take();
  const std::string nonsense[] = {
      "no frame at all",
      encode_frame(0, number),
      encode_frame(200, number),
      encode_frame(type(StoreRequest::set), ""),
      encode_frame(type(StoreRequest::size), number + "more"),
      encode_frame(type(StoreRequest::cancel), number + "more"),
      encode_frame(type(StoreRequest::get), number + Writer().u32(UINT32_MAX).take()),
      encode_frame(type(StoreRequest::get),
                   number + Writer().string(std::string(2000, 'k')).take()),
      encode_frame(type(StoreRequest::set), number + Writer().string("k").u32(100).take()),
      encode_frame(type(StoreRequest::add), number + Writer().string("k").u32(1).take()),
      encode_frame(type(StoreRequest::wait), number + Writer().u32(UINT32_MAX).take()),
      encode_frame(type(StoreRequest::check), number + Writer().u32(2).string("k").take()),
      frame_header(type(StoreRequest::set), UINT32_MAX),
  };
  for (const std::string& said : nonsense) {
    Socket s = member(p.server);
    s.write(said.data(), said.size(), Clock::now() + kPatience);
    CHECK(is_dropped(s));
  }
  CHECK(p.store.size() == 0);
}

TEST(store_drops_members_who_do_not_read) {
  Pair p;
  p.store.set("large", std::string(StoreLimits().value_bytes, 'x'));
  Socket s = member(p.server);
  const std::string get =
      encode_frame(static_cast<uint8_t>(StoreRequest::get), Writer().u32(1).string("large").take());
  try {
    for (int i = 0; i < 100'000; ++i) s.write(get.data(), get.size(), Clock::now() + kPatience);
  } catch (const Error& e) {
    CHECK(e.kind == ErrorKind::peer_lost);
  }
  CHECK(is_dropped(s));
  CHECK(p.store.get("large").size() == StoreLimits().value_bytes);
}

TEST(store_forgets_members_who_go_while_they_wait) {
  Pair p;
  for (int i = 0; i < 10; ++i) {
    Socket s = member(p.server);
    send_frame(s, static_cast<uint8_t>(StoreRequest::get), Writer().u32(1).string("key").take(),
               Clock::now() + kPatience);
  }
  p.store.set("key", "value");
  CHECK(p.store.get("key") == "value");
}

TEST(store_survives_the_lack_of_descriptors) {
  Pair p;
  rlimit before;
  CHECK(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit few = before;
  few.rlim_cur = std::min<rlim_t>(before.rlim_cur, 200);
  CHECK(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  std::vector<Socket> strangers;
  bool exhausted = false;
  try {
    while (strangers.size() < 300) strangers.push_back(stranger(p.server));
  } catch (const Error& e) {
    exhausted = e.kind == ErrorKind::system;
  }
  p.store.set("key", "value");  // who is in is served
  strangers.clear();
  Store late("127.0.0.1", p.server.port(), kSecret, kPatience);
  const bool served = late.get("key") == "value";
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(exhausted && served);
}

// --- life and death of the server ----------------------------------------------------------------

TEST(store_waits_for_its_server) {
  const uint16_t port = Listener::tcp("127.0.0.1", 0).port();
  const auto open = [&](Duration timeout) { Store("127.0.0.1", port, kSecret, timeout); };
  CHECK_FAILS(timeout, open(50ms));
  auto opening = std::async(std::launch::async, [&] { open(kPatience); });
  StoreServer server("127.0.0.1", port, kSecret);
  opening.get();
}

TEST(store_clients_learn_that_the_server_is_gone) {
  auto server = std::make_unique<StoreServer>("127.0.0.1", 0, kSecret);
  Store store("127.0.0.1", server->port(), kSecret, kPatience);
  store.set("key", "value");
  auto getting = std::async(std::launch::async,
                            [&] { CHECK_FAILS(peer_lost, store.get("never", kPatience)); });
  auto waiting = std::async(std::launch::async,
                            [&] { CHECK_FAILS(peer_lost, store.wait({"never"}, kPatience)); });
  server.reset();
  getting.get();
  waiting.get();
  for (int i = 0; i < 3; ++i) CHECK_FAILS(peer_lost, store.set("key", "value"));
}

TEST(store_errors_of_the_address) {
  CHECK_FAILS(system, StoreServer("192.0.2.1", 0, kSecret));  // not an address of this host
  Pair p;
  CHECK_FAILS(system, StoreServer("127.0.0.1", p.server.port(), kSecret));
  CHECK_FAILS(timeout, Store("no-such-host.invalid", 1, kSecret, 100ms));
}

// --- the session alone ---------------------------------------------------------------------------

TEST(session_reads_no_more_of_a_stranger_than_the_handshake) {
  StoreTable table{StoreLimits()};
  StoreSession session(table, 7, kSecret);
  size_t read = 0;
  for (; session.wanted() > 0 && !session.failed(); ++read) {
    CHECK(session.wanted() <= 80);
    const char byte = read < 4 ? "EJA1"[read] : '\0';
    session.take(&byte, 1);
  }
  CHECK(session.failed() && !session.authenticated() && read <= 80);
}
