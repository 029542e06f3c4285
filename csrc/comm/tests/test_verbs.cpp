// The verbs link: on the fake library everywhere, and on a real device where there is one.
#include <poll.h>

#include <cstring>
#include <functional>
#include <future>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/verbs.h"
#include "comm/verbs_device.h"
#include "fake_verbs.h"
#include "test.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

// One rank's end, with a region of its own.
struct End {
  Counters counters{};
  Stats stats;
  std::shared_ptr<VerbsContext> context;
  std::unique_ptr<PendingLink> pending;
  std::vector<unsigned char> memory;
  Registered region;
  std::unique_ptr<Link> link;
  Target target;  // the other's region

  End(int rank, std::shared_ptr<VerbsContext> shared, size_t bytes, Duration timeout)
      : context(std::move(shared)), memory(bytes) {
    LinkOptions options;
    options.rank = rank;
    options.peer = 1 - rank;
    options.counters = &counters;
    options.stats = &stats;
    options.timeout = timeout;
    pending = prepare_verbs(options, context);
    region.id = uint32_t(rank + 1);
    region.base = reinterpret_cast<std::byte*>(memory.data());
    region.length = bytes;
  }
  ~End() {
    if (link) link->detach(region);
  }
  uint32_t arrived(uint32_t slot) { return counters.at[slot].value; }
};

// Two ends joined in one process.
struct Joined {
  End a, b;

  explicit Joined(const std::function<std::shared_ptr<VerbsContext>()>& context,
                  size_t bytes = 1 << 20, Duration timeout = 20s)
      : a(0, context(), bytes, timeout), b(1, context(), bytes, timeout) {
    std::string from_a = a.pending->offer(), from_b = b.pending->offer();
    CHECK(from_a.size() <= kMaxOffer);
    auto other = std::async(std::launch::async,
                            [&] { b.link = b.pending->connect(from_a, Clock::now() + 20s); });
    a.link = a.pending->connect(from_b, Clock::now() + 20s);
    other.get();
    for (End* end : {&a, &b}) end->link->attach(end->region);
    a.target = a.link->import(b.link->key(b.region));
    b.target = b.link->import(a.link->key(a.region));
  }

  // Handles both ends' events until the condition holds.
  void until(const std::function<bool()>& condition, Duration limit = 60s) {
    for (auto deadline = Clock::now() + limit; !condition();) {
      CHECK(Clock::now() < deadline);
      a.link->progress();
      b.link->progress();
      std::this_thread::yield();
    }
  }
};

std::vector<fake::Device> two_devices() {
  std::vector<fake::Device> two(2);
  two[0].name = "fake0";
  two[1].name = "fake1";
  return two;
}

std::function<std::shared_ptr<VerbsContext>()> on(const fake::Verbs& verbs,
                                                  const std::string& devices = "") {
  return [&verbs, devices] { return std::make_shared<VerbsContext>(devices, verbs.api()); };
}

// Puts of many sizes, from a region and from other memory, whole and in pieces.
void put_sizes(Joined& joined, const std::vector<size_t>& sizes, size_t offset) {
  std::vector<unsigned char> loose(joined.a.memory.size());
  for (size_t i = 0; i < loose.size(); i++) loose[i] = (unsigned char)(i * 7 + i / 251);
  std::copy(loose.begin(), loose.end(), joined.a.memory.begin());
  uint32_t count = 0;
  for (size_t size : sizes) {
    for (int way = 0; way < 3; way++) {
      std::fill(joined.b.memory.begin(), joined.b.memory.end(), 0xee);
      const unsigned char* from = way == 0 ? joined.a.memory.data() : loose.data();
      std::vector<Piece> pieces;
      if (way == 2)
        pieces = {{from, size / 3}, {nullptr, 0}, {from + size / 3, size - size / 3}};
      else
        pieces = {{from, size}};
      uint64_t ticket =
          joined.a.link->put(joined.a.target, offset, pieces.data(), int(pieces.size()), 20);
      count++;
      joined.until([&] { return joined.b.arrived(20) == count; });
      joined.until([&] { return joined.a.link->is_sent(ticket); });
      CHECK(std::memcmp(joined.b.memory.data() + offset, loose.data(), size) == 0);
      for (size_t i = 0; i < offset; i++) CHECK(joined.b.memory[i] == 0xee);
      if (offset + size < joined.b.memory.size()) CHECK(joined.b.memory[offset + size] == 0xee);
    }
  }
}

// Both ends send at once, more than the receives that are posted, without a pause.
void storm(Joined& joined, int puts) {
  auto send = [&](End& end) {
    std::vector<uint32_t> word(64);
    for (int i = 0; i < puts; i++) {
      word[0] = uint32_t(i);
      Piece piece{word.data(), i % 3 == 0 ? 4u : 256u};
      end.link->put(end.target, 4096, &piece, 1, i % 5 == 4 ? kNoCounter : 21);
      if (i % 5 == 4) end.link->put(end.target, 0, nullptr, 0, 21);
    }
  };
  // An end that has sent all still has to handle what comes.
  auto pump = std::async(std::launch::async, [&] {
    joined.until([&] {
      return joined.a.arrived(21) == uint32_t(puts) && joined.b.arrived(21) == uint32_t(puts);
    });
  });
  auto other = std::async(std::launch::async, [&] { send(joined.b); });
  send(joined.a);
  other.get();
  pump.get();
  uint32_t last;
  std::memcpy(&last, joined.a.memory.data() + 4096, 4);
  CHECK(last == uint32_t(puts - 1));
}

}  // namespace

TEST(verbs_puts_arrive_whole) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  put_sizes(joined, {0, 1, 4, 127, 128, 129, 4095, 16384, 16385, 50000, 131072, 131075, 1000000},
            13);
  CHECK(verbs.bytes(0) > 0 && verbs.bytes(1) > 0);  // striped
  CHECK(verbs.receiver_not_ready() == 0);
}

TEST(verbs_large_messages_are_cut) {
  auto devices = two_devices();
  devices[0].max_message = devices[1].max_message = 5000;
  fake::Verbs verbs(devices);
  Joined joined(on(verbs));
  put_sizes(joined, {4999, 5000, 5001, 600000}, 1);
}

TEST(verbs_without_inline) {
  auto devices = two_devices();
  devices[0].max_inline = devices[1].max_inline = 0;
  fake::Verbs verbs(devices);
  Joined joined(on(verbs));
  put_sizes(joined, {1, 100, 200000}, 3);
  storm(joined, 300);
}

TEST(verbs_flow_control_never_finds_a_receiver_unready) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  storm(joined, 1000);
  CHECK(verbs.receiver_not_ready() == 0);
}

// A signal must not overtake bytes that travel on other rails, also when it is of a later put.
TEST(verbs_signals_wait_for_all_rails) {
  auto devices = two_devices();
  devices.push_back(devices[0]);
  devices[2].name = "fake2";
  fake::Verbs verbs(devices);
  Joined joined(on(verbs), 4 << 20);
  auto& memory = joined.a.memory;
  for (uint32_t round = 1; round <= 40; round++) {
    std::fill(memory.begin(), memory.end(), (unsigned char)round);
    Piece large{memory.data(), memory.size()}, small{memory.data(), 1};
    uint64_t ticket = joined.a.link->put(joined.a.target, 0, &large, 1, kNoCounter);
    joined.a.link->put(joined.a.target, 0, &small, 1, 30);
    while (joined.b.arrived(30) != round) joined.b.link->progress();
    for (size_t i = 0; i < memory.size(); i += 1021) CHECK(joined.b.memory[i] == round);
    joined.until([&] { return joined.a.link->is_sent(ticket); });
  }
  CHECK(verbs.bytes(1) > 0 && verbs.bytes(2) > 0);
}

TEST(verbs_copies_are_counted_and_registrations_end) {
  fake::Verbs verbs(two_devices());
  {
    Joined joined(on(verbs));
    uint64_t before = verbs.registered();
    std::vector<unsigned char> loose(500000, 7);
    Piece small{loose.data(), 3000}, middle{loose.data(), 8000}, large{loose.data(), 500000};
    uint64_t ticket = joined.a.link->put(joined.a.target, 0, &small, 1, 20);
    CHECK(joined.a.stats.staged_bytes == 0);
    joined.a.link->put(joined.a.target, 0, &middle, 1, 20);
    CHECK(joined.a.stats.staged_bytes == 8000);
    ticket = joined.a.link->put(joined.a.target, 0, &large, 1, 20);
    CHECK(joined.a.stats.staged_bytes == 8000);
    joined.until([&] { return joined.a.link->is_sent(ticket); });
    CHECK(verbs.registered() == before);
    verbs.refuse_registration(true);  // then the bytes go through the ring
    joined.a.link->put(joined.a.target, 100, &large, 1, 20);
    verbs.refuse_registration(false);
    CHECK(joined.a.stats.staged_bytes == 508000);
    joined.until([&] { return joined.b.arrived(20) == 4; });
    CHECK(joined.b.memory[500099] == 7);
    verbs.refuse_registration(true);
    Registered more = joined.a.region;
    more.base += 4096;
    CHECK_FAILS(system, joined.a.link->attach(more));
    verbs.refuse_registration(false);
  }
  CHECK(verbs.registered() == 0);
}

TEST(verbs_few_completions_for_small_puts) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  int byte = 0;
  Piece piece{&byte, 4};
  for (int i = 0; i < 256; i++) joined.a.link->put(joined.a.target, 0, &piece, 1, kNoCounter);
  joined.until([&] { return verbs.writes() == 256; });
  CHECK(verbs.completions() <= 16);
}

TEST(verbs_what_was_put_arrives_though_the_sender_leaves) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  int word = 5;
  Piece piece{&word, 4};
  for (int i = 0; i < 60; i++) joined.a.link->put(joined.a.target, 0, &piece, 1, 20);
  joined.a.link->detach(joined.a.region);
  auto leaving = std::async(std::launch::async, [&] { joined.a.link.reset(); });
  leaving.get();
  auto deadline = Clock::now() + 20s;
  while (joined.b.arrived(20) != 60) {
    CHECK(Clock::now() < deadline);
    joined.b.link->progress();
  }
}

TEST(verbs_sleeps_until_something_comes) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  for (int round = 0; round < 20; round++) {
    auto sender = std::async(std::launch::async, [&] {
      std::this_thread::yield();
      joined.a.link->put(joined.a.target, 0, nullptr, 0, 22);
    });
    while (joined.b.arrived(22) != uint32_t(round + 1)) {
      if (!joined.b.link->arm()) continue;
      std::vector<pollfd> wait;
      for (int fd : joined.b.link->descriptors()) wait.push_back({fd, POLLIN, 0});
      CHECK(poll(wait.data(), wait.size(), 20000) > 0);
      joined.b.link->progress();
    }
    sender.get();
  }
}

TEST(verbs_broken_connection_is_a_lost_peer) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  verbs.cut();
  Piece piece{joined.a.memory.data(), 100000};
  try {
    uint64_t ticket = joined.a.link->put(joined.a.target, 0, &piece, 1, 20);
    joined.until([&] { return joined.a.link->is_sent(ticket); });
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.kind == ErrorKind::peer_lost && error.peer == 1);
    CHECK(std::string(error.what()).find("transport retry counter exceeded") != std::string::npos);
  }
  joined.a.link->abandon();
  joined.a.link->progress();  // silent from now on
  CHECK_FAILS(peer_lost, joined.a.link->put(joined.a.target, 0, &piece, 1, 20));
  joined.b.link->abandon();
}

TEST(verbs_broken_device_is_noticed) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  CHECK(joined.a.link->arm());
  verbs.device_fatal(1);
  CHECK_FAILS(peer_lost, joined.a.link->arm());
  joined.a.link->abandon();
  joined.b.link->abandon();
}

// The receiver handles nothing: the sender is stopped by the flow control, and says so in time.
TEST(verbs_put_times_out_and_abandon_wakes_it) {
  fake::Verbs verbs(two_devices());
  auto flood = [](Joined& joined) {
    for (int i = 0; i < 10000; i++) joined.a.link->put(joined.a.target, 0, nullptr, 0, 20);
  };
  {
    Joined joined(on(verbs), 1 << 20, 200ms);
    CHECK_FAILS(timeout, flood(joined));
    CHECK(verbs.receiver_not_ready() == 0);
    joined.a.link->abandon();
    joined.b.link->abandon();
  }
  Joined joined(on(verbs), 1 << 20, 60s);
  auto waker = std::async(std::launch::async, [&] {
    while (verbs.writes() < 64) std::this_thread::yield();
    joined.a.link->abandon();
  });
  CHECK_FAILS(peer_lost, flood(joined));
  waker.get();
  joined.b.link->abandon();
}

TEST(verbs_bad_arguments_and_keys) {
  fake::Verbs verbs(two_devices());
  Joined joined(on(verbs));
  Link& link = *joined.a.link;
  Piece piece{joined.a.memory.data(), 100};
  size_t length = joined.a.target.length;
  CHECK_FAILS(invalid, link.put(joined.a.target, length - 99, &piece, 1, 20));
  CHECK_FAILS(invalid, link.put(joined.a.target, SIZE_MAX - 50, &piece, 1, 20));
  CHECK_FAILS(invalid, link.put(joined.a.target, 0, &piece, 1, kCounters));
  Piece huge[] = {{joined.a.memory.data(), SIZE_MAX}, {joined.a.memory.data(), 2}};
  CHECK_FAILS(invalid, link.put(joined.a.target, 0, huge, 2, 20));
  Key key = joined.b.link->key(joined.b.region);
  for (size_t at : {0, 47, 60}) {
    Key wrong = key;
    wrong[at] ^= std::byte{0x5a};
    if (at == 47) continue;  // a remote key: only the device can tell
    CHECK_FAILS(protocol, link.import(wrong));
  }
  Key wrong = key;
  std::memset(wrong.data() + 8, 0xff, 16);  // beyond the end of memory
  CHECK_FAILS(protocol, link.import(wrong));
  Registered unknown;
  unknown.base = joined.a.region.base + joined.a.region.length;
  unknown.length = 10;
  CHECK_FAILS(invalid, link.key(unknown));
}

TEST(verbs_bad_offers) {
  fake::Verbs verbs(two_devices());
  LinkOptions options;
  options.peer = 1;
  auto pending = prepare_verbs(options, on(verbs)());
  std::string good = pending->offer();
  auto deadline = Clock::now() + 1s;
  CHECK_FAILS(protocol, pending->connect("", deadline));
  CHECK_FAILS(protocol, pending->connect(good + "x", deadline));
  CHECK_FAILS(protocol, pending->connect(std::string(good.size(), '\0'), deadline));
  for (size_t at = 8; at < 28; at += 4) {  // counts, numbers, codes
    std::string bad = good;
    bad.replace(at, 4, "\xff\xff\xff\xff");
    if (at == 12) continue;  // reserved
    CHECK_FAILS(protocol, prepare_verbs(options, on(verbs)())->connect(bad, deadline));
  }
}

TEST(verbs_chooses_ports_and_addresses) {
  auto devices = two_devices();
  devices[0].gids = {{"fe80::1", "IB/RoCE v1"},
                     {"fe80::1", "RoCE v2"},
                     {"2001:db8::1", "RoCE v2"},
                     {"::ffff:10.9.0.1", "IB/RoCE v1"},
                     {"::ffff:10.9.0.1", "RoCE v2"}};
  devices[1].active = false;
  fake::Device iwarp, infiniband;
  iwarp.name = "iwarp0";
  iwarp.transport = 1;
  infiniband.name = "ib0";
  infiniband.ethernet = false;
  infiniband.gids = {{"fe80::2", "IB/RoCE v1"}};
  devices.push_back(iwarp);
  devices.push_back(infiniband);
  fake::Verbs verbs(devices);
  auto text = [&](const std::string& list) { return on(verbs, list)()->description(); };
  CHECK(text("") ==
        "fake0 port 1 (Ethernet, GID 4 RoCE v2 10.9.0.1, MTU 4096), "
        "ib0 port 1 (InfiniBand, LID 7, MTU 4096)");
  CHECK(text("fake0:1:2") == "fake0 port 1 (Ethernet, GID 2 RoCE v2 2001:db8::1, MTU 4096)");
  CHECK(text("fake0,fake0:1") == text("fake0"));
  CHECK(text("ib0") == "ib0 port 1 (InfiniBand, LID 7, MTU 4096)");
  CHECK_FAILS(invalid, text("fake9"));
  for (const char* bad : {"fake0:", "fake0:x", "fake0:0", ":1", ",", "fake0:1:", "fake0:1:9999999"})
    CHECK_FAILS(invalid, text(bad));
  for (const char* unusable : {"fake1", "iwarp0", "fake0:2", "fake0:1:77"})
    CHECK_FAILS(system, text(unusable));
}

TEST(verbs_joins_ports_of_one_kind) {
  auto devices = two_devices();
  devices[1].ethernet = false;
  fake::Verbs verbs(devices);
  int turn = 0;  // the first end has both kinds, the second InfiniBand only
  Joined joined([&] { return on(verbs, turn++ == 0 ? "" : "fake1")(); });
  put_sizes(joined, {4, 300000}, 0);
  CHECK(verbs.bytes(0) == 0 && verbs.bytes(1) > 300000);

  LinkOptions options;
  options.peer = 1;
  auto ethernet = prepare_verbs(options, on(verbs, "fake0")());
  auto infiniband = prepare_verbs(options, on(verbs, "fake1")());
  CHECK_FAILS(system, ethernet->connect(infiniband->offer(), Clock::now() + 1s));
}

// A real device, with itself.
TEST(verbs_on_a_device) {
  std::shared_ptr<VerbsContext> context;
  try {
    context = std::make_shared<VerbsContext>("");
  } catch (const Error& error) {
    CHECK(error.kind == ErrorKind::system);
    std::printf("(no device: %s)\n", error.what());
    return;
  }
  std::printf("(on %s)\n", context->description().c_str());
  Joined joined([&] { return context; });
  put_sizes(joined, {0, 1, 200, 5000, 20000, 300000, 1000000}, 3);
  storm(joined, 2000);
}
