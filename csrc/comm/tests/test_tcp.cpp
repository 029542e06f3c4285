// TCP links without a mesh: two ends in one process over loopback.
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <random>
#include <thread>
#include <vector>

#include "comm/auth.h"
#include "comm/join_messages.h"
#include "comm/tcp.h"
#include "test.h"

using namespace eager::comm;

namespace {

Deadline in(int seconds) { return Clock::now() + std::chrono::seconds(seconds); }

// What Mesh gives a link: counters and a region.
struct Side {
  std::unique_ptr<Counters> counters = std::make_unique<Counters>();
  Stats stats;
  std::vector<std::byte> memory;
  Registered region;
  std::unique_ptr<Link> link;

  explicit Side(size_t bytes) : memory(bytes) {
    region.id = 7;
    region.base = memory.data();
    region.length = bytes;
  }
  uint32_t arrived(uint32_t counter) const { return counters->at[counter].value.load(); }
  TcpLink& tcp() { return static_cast<TcpLink&>(*link); }
};

LinkOptions options(int rank, Side& side, int sockets, Duration timeout = std::chrono::minutes(2)) {
  LinkOptions o;
  o.rank = rank;
  o.peer = 1 - rank;
  o.counters = side.counters.get();
  o.stats = &side.stats;
  o.timeout = timeout;
  o.address = "127.0.0.1";
  o.secret = "between us";
  o.sockets = sockets;
  return o;
}

struct Pair {
  Side a, b;  // ranks 0 and 1
  Target to_a, to_b;

  explicit Pair(size_t bytes, int sockets = 2, TcpTuning tuning = {},
                Duration timeout = std::chrono::minutes(2))
      : a(bytes), b(bytes) {
    auto pending_a = prepare_tcp(options(0, a, sockets, timeout), tuning);
    auto pending_b = prepare_tcp(options(1, b, sockets, timeout), tuning);
    const std::string offer_a = pending_a->offer(), offer_b = pending_b->offer();
    auto other =
        std::async(std::launch::async, [&] { return pending_b->connect(offer_a, in(30)); });
    a.link = pending_a->connect(offer_b, in(30));
    b.link = other.get();
    a.link->attach(a.region);
    b.link->attach(b.region);
    to_a = b.link->import(a.link->key(a.region));
    to_b = a.link->import(b.link->key(b.region));
  }
};

// Progress of one end until the condition holds; what a waiter of Mesh does.
void until(Side& side, const std::function<bool()>& condition) {
  const Deadline deadline = in(60);
  while (!condition()) {
    side.link->progress();
    if (Clock::now() > deadline) throw std::runtime_error("nothing came within a minute");
  }
}

std::byte pattern(uint64_t seed, size_t i) {
  uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
  return std::byte((x ^ x >> 29) >> 24);
}
std::vector<std::byte> patterned(uint64_t seed, size_t n) {
  std::vector<std::byte> bytes(n);
  for (size_t i = 0; i < n; ++i) bytes[i] = pattern(seed, i);
  return bytes;
}
bool matches(const std::byte* at, uint64_t seed, size_t n) {
  for (size_t i = 0; i < n; ++i)
    if (at[i] != pattern(seed, i)) return false;
  return true;
}

uint64_t put(Side& from, const Target& target, size_t offset, const std::vector<std::byte>& bytes,
             uint32_t counter) {
  const Piece piece{bytes.data(), bytes.size()};
  return from.link->put(target, offset, &piece, 1, counter);
}

}  // namespace

TEST(tcp_puts_of_every_size_arrive) {
  for (int sockets : {1, 2, 5}) {
    Pair p(6 << 20, sockets);
    uint32_t arrived = 0;
    for (size_t n : {size_t(0), size_t(1), size_t(39), size_t(8151), size_t(8152), size_t(8153),
                     size_t(262144), size_t(524289), size_t(5 << 20)}) {
      const auto bytes = patterned(n, n);
      const uint64_t ticket = put(p.a, p.to_b, 3, bytes, 100);
      ++arrived;
      std::thread sender([&] { until(p.a, [&] { return p.a.link->is_sent(ticket); }); });
      until(p.b, [&] { return p.b.arrived(100) == arrived; });
      sender.join();
      CHECK(matches(p.b.memory.data() + 3, n, n));
    }
    CHECK(p.b.arrived(100) == arrived);
  }
}

TEST(tcp_put_gathers_pieces) {
  Pair p(2 << 20);
  const auto bytes = patterned(1, 1500000);
  std::vector<Piece> pieces;
  for (size_t at = 0, step = 1; at < bytes.size(); step = step * 3 % 40009 + 1) {
    const size_t n = std::min(step, bytes.size() - at);
    pieces.push_back({bytes.data() + at, n});
    if (pieces.size() % 5 == 0) pieces.push_back({nullptr, 0});
    at += n;
  }
  const uint64_t ticket =
      p.a.link->put(p.to_b, 11, pieces.data(), int(pieces.size()), kCounters - 1);
  until(p.b, [&] {
    p.a.link->progress();
    return p.b.arrived(kCounters - 1) == 1;
  });
  CHECK(p.a.link->is_sent(ticket));
  CHECK(matches(p.b.memory.data() + 11, 1, bytes.size()));
}

// A small put behind a large one takes a free socket, and yet its counter waits.
TEST(tcp_counters_advance_in_order) {
  Pair p(16 << 20, 3);
  const auto large = patterned(1, 12 << 20), small = patterned(2, 16);
  for (int round = 1; round <= 3; ++round) {
    put(p.a, p.to_b, 0, large, kNoCounter);
    const uint64_t last = put(p.a, p.to_b, 13 << 20, small, 20);
    std::thread sender([&] { until(p.a, [&] { return p.a.link->is_sent(last); }); });
    until(p.b, [&] { return p.b.arrived(20) == uint32_t(round); });
    sender.join();
    CHECK(matches(p.b.memory.data(), 1, large.size()));
    CHECK(matches(p.b.memory.data() + (13 << 20), 2, small.size()));
    std::memset(p.b.memory.data(), 0, p.b.memory.size());
  }
}

// Both ranks put much more than sockets and queues hold; nobody else receives for them.
TEST(tcp_mutual_large_puts_do_not_deadlock) {
  TcpTuning tuning;
  tuning.queue_bytes = 1 << 20;
  Pair p(8 << 20, 2, tuning);
  const auto bytes = patterned(5, 8 << 20);
  const auto run = [&](Side& side, const Target& target) {
    uint64_t ticket = 0;
    for (int i = 0; i < 6; ++i) ticket = put(side, target, 0, bytes, 30);
    until(side, [&] { return side.arrived(30) == 6 && side.link->is_sent(ticket); });
  };
  std::thread other([&] { run(p.b, p.to_a); });
  run(p.a, p.to_b);
  other.join();
  CHECK(matches(p.a.memory.data(), 5, bytes.size()));
  CHECK(matches(p.b.memory.data(), 5, bytes.size()));
}

// Several threads per side, random sizes, both directions at once, zero copies and few queue bytes
// now and then.
TEST(tcp_random_puts_from_several_threads) {
  constexpr int kThreads = 3, kPuts = 40;
  constexpr size_t kSlot = 1 << 20;
  for (int variant = 0; variant < 3; ++variant) {
    TcpTuning tuning;
    if (variant == 1) tuning.zero_copy = ZeroCopy::always;
    if (variant == 2) tuning.queue_bytes = 1000;
    Pair p(kThreads * kSlot, 1 + variant, tuning);
    const auto work = [&](Side& self, const Target& target, int side, int thread) {
      std::mt19937_64 random{uint64_t(side * 100 + thread)};
      std::mt19937_64 mirror{uint64_t((1 - side) * 100 + thread)};
      const auto draw = [](std::mt19937_64& r) {
        const size_t limit = size_t(1) << (r() % 21);
        return r() % limit;
      };
      // Counter 100 + thread: bytes are there; 200 + thread: the other side has looked at them.
      for (uint32_t i = 1; i <= kPuts; ++i) {
        const size_t mine = draw(random), theirs = draw(mirror);
        const auto bytes = patterned(i, mine);
        const size_t offset = size_t(thread) * kSlot;
        const uint64_t ticket = put(self, target, offset, bytes, uint32_t(100 + thread));
        until(self, [&] { return self.arrived(uint32_t(100 + thread)) == i; });
        const bool good = matches(self.memory.data() + offset, i, theirs);
        put(self, target, 0, {}, uint32_t(200 + thread));
        until(self, [&] {
          return self.arrived(uint32_t(200 + thread)) == i && self.link->is_sent(ticket);
        });
        if (!good) throw std::runtime_error("wrong bytes");
      }
    };
    std::vector<std::future<void>> all;
    for (int t = 0; t < kThreads; ++t) {
      all.push_back(std::async(std::launch::async, [&, t] { work(p.a, p.to_b, 0, t); }));
      all.push_back(std::async(std::launch::async, [&, t] { work(p.b, p.to_a, 1, t); }));
    }
    for (auto& f : all) f.get();
  }
}

// The kernel copies on loopback and says so: after that nothing is pinned any more.
TEST(tcp_zero_copy_gives_up_where_the_kernel_copies) {
  TcpTuning tuning;
  tuning.zero_copy = ZeroCopy::always;
  Pair p(4 << 20, 1, tuning);
  const auto bytes = patterned(3, 4 << 20);
  uint64_t pinned = 0;
  for (uint32_t i = 1; i <= 4; ++i) {
    const uint64_t ticket = put(p.a, p.to_b, 0, bytes, 50);
    until(p.b, [&] {
      p.a.link->progress();
      return p.b.arrived(50) == i && p.a.link->is_sent(ticket);
    });
    CHECK(matches(p.b.memory.data(), 3, bytes.size()));
    if (i == 1) pinned = p.a.tcp().zero_copy_bytes();
  }
  CHECK(pinned > 0);
  CHECK(p.a.tcp().zero_copy_bytes() == pinned);
  Pair plain(1 << 20);
  put(plain.a, plain.to_b, 0, patterned(1, 1 << 20), 50);
  CHECK(plain.a.tcp().zero_copy_bytes() == 0);
}

TEST(tcp_descriptor_is_quiet_when_nothing_is_to_do) {
  Pair p(4 << 20);
  const int fd = p.b.link->descriptors().at(0);
  CHECK(!wait_readable(fd, Clock::now()));
  put(p.a, p.to_b, 0, patterned(1, 100), 40);
  CHECK(wait_readable(fd, in(30)));
  until(p.b, [&] { return p.b.arrived(40) == 1; });
  p.b.link->progress();
  CHECK(!wait_readable(fd, Clock::now()));
  // A sender that waits for room hears of it by its descriptor, too.
  const auto bytes = patterned(2, 4 << 20);
  uint64_t ticket = 0;
  for (int i = 0; i < 8; ++i) ticket = put(p.a, p.to_b, 0, bytes, 40);
  while (!p.a.link->is_sent(ticket)) {
    p.b.link->progress();
    if (wait_readable(p.a.link->descriptors().at(0), Clock::now() + std::chrono::milliseconds(1)))
      p.a.link->progress();
  }
  until(p.b, [&] { return p.b.arrived(40) == 9; });
  p.a.link->progress();
  CHECK(!wait_readable(p.a.link->descriptors().at(0), Clock::now()));
}

TEST(tcp_put_outside_the_region_is_refused) {
  Pair p(1000);
  const auto bytes = patterned(1, 1000);
  CHECK_FAILS(invalid, put(p.a, p.to_b, 1, bytes, 20));
  CHECK_FAILS(invalid, put(p.a, p.to_b, 1001, {}, 20) + put(p.a, p.to_b, SIZE_MAX, bytes, 20));
  CHECK_FAILS(invalid, put(p.a, p.to_b, 0, bytes, kCounters));
  const Piece overflow[] = {{bytes.data(), 8}, {bytes.data(), SIZE_MAX - 4}};
  CHECK_FAILS(invalid, p.a.link->put(p.to_b, 0, overflow, 2, 20));
  put(p.a, p.to_b, 0, bytes, 20);
  until(p.b, [&] { return p.b.arrived(20) == 1; });
}

TEST(tcp_keys_are_checked) {
  Pair p(1000);
  const Key good = p.a.link->key(p.a.region);
  CHECK(p.b.link->import(good).length == 1000);
  for (size_t i : {size_t(0), size_t(3), size_t(15), size_t(16), size_t(63)}) {
    Key bad = good;
    bad[i] ^= std::byte{0x80};
    CHECK_FAILS(protocol, p.b.link->import(bad));
  }
  Registered device = p.a.region;
  device.device = true;
  CHECK_FAILS(invalid, p.a.link->key(device));
}

// What a correct peer never sends, sent by a peer that has authenticated.
TEST(tcp_wrong_puts_are_protocol_errors) {
  const auto bytes = patterned(1, 64);
  const auto refused = [&](Target target, size_t offset) {
    Pair p(1000);
    target.peer = 1;
    put(p.a, target, offset, bytes, 20);
    bool threw = false;
    try {
      until(p.b, [] { return false; });
    } catch (const Error& e) {
      threw = e.kind == ErrorKind::protocol && e.peer == 0;
    }
    CHECK(threw);
    CHECK(p.b.arrived(20) == 0);
    CHECK(std::all_of(p.b.memory.begin(), p.b.memory.end(),
                      [](std::byte b) { return b == std::byte{}; }));
    CHECK_FAILS(peer_lost, p.b.link->progress());
  };
  Target target;
  target.region = 8;  // there is only 7
  target.length = 1000;
  refused(target, 0);
  target.region = 7;
  target.length = 5000;  // there are only 1000
  refused(target, 990);
  target.length = SIZE_MAX;
  refused(target, SIZE_MAX - 64);
}

TEST(tcp_released_region_is_not_written) {
  Pair p(8 << 20);
  const auto bytes = patterned(1, 8 << 20);
  put(p.a, p.to_b, 0, bytes, 20);
  p.b.link->progress();
  p.b.link->detach(p.b.region);
  std::memset(p.b.memory.data(), 0, p.b.memory.size());
  CHECK_FAILS(protocol, until(p.b, [&] {
                p.a.link->progress();
                return false;
              }));
  CHECK(std::all_of(p.b.memory.begin(), p.b.memory.end(),
                    [](std::byte b) { return b == std::byte{}; }));
}

TEST(tcp_end_of_the_peer_is_noticed_and_nothing_before_it_is_lost) {
  Pair p(4 << 20, 3);
  const auto bytes = patterned(9, 3 << 20);
  put(p.a, p.to_b, 0, bytes, 20);
  put(p.a, p.to_b, 0, {}, 21);
  std::thread leaving([&] { p.a.link.reset(); });  // sends the rest first
  until(p.b, [&] { return p.b.arrived(21) == 1; });
  leaving.join();
  CHECK(matches(p.b.memory.data(), 9, bytes.size()));
  CHECK_FAILS(peer_lost, until(p.b, [] { return false; }));
  // Sending is refused too, at the latest when the peer's kernel has answered.
  try {
    for (;;) put(p.b, p.to_a, 0, bytes, 20);
  } catch (const Error& e) {
    CHECK(e.kind == ErrorKind::peer_lost);
  }
}

TEST(tcp_abandon_wakes_a_put) {
  TcpTuning tuning;
  tuning.queue_bytes = 1;
  Pair p(4 << 20, 2, tuning);
  const auto bytes = patterned(1, 4 << 20);
  std::promise<void> full;
  auto result = std::async(std::launch::async, [&] {
    try {
      put(p.a, p.to_b, 0, bytes, 20);  // more than sockets hold, and nobody receives
      full.set_value();
      for (;;) put(p.a, p.to_b, 0, bytes, 20);
    } catch (const Error& e) {
      return e.kind == ErrorKind::peer_lost && e.peer == 1;
    }
  });
  full.get_future().wait();
  p.a.link->abandon();
  CHECK(result.get());
  CHECK_FAILS(peer_lost, until(p.b, [] { return false; }));
}

TEST(tcp_put_gives_up_when_nothing_is_taken) {
  TcpTuning tuning;
  tuning.queue_bytes = 1;
  Pair p(4 << 20, 2, tuning, std::chrono::milliseconds(300));
  const auto bytes = patterned(1, 4 << 20);
  bool threw = false;
  try {
    for (;;) put(p.a, p.to_b, 0, bytes, 20);
  } catch (const Error& e) {  // TCP_USER_TIMEOUT may see it first
    threw = e.kind == ErrorKind::timeout || e.kind == ErrorKind::peer_lost;
  }
  CHECK(threw);
}

// --- who is let in -------------------------------------------------------------------------------

TEST(tcp_strangers_do_not_disturb_the_pair) {
  Side a(1 << 20), b(1 << 20);
  auto pending_a = prepare_tcp(options(0, a, 2), {});
  auto pending_b = prepare_tcp(options(1, b, 2), {});
  const std::string offer_a = pending_a->offer(), offer_b = pending_b->offer();
  const TcpOffer where = TcpOffer::decode(offer_a, true);

  std::vector<Socket> strangers;
  std::mt19937 random{1};
  for (int i = 0; i < 60; ++i) {
    strangers.push_back(Socket::connect(where.address, where.port, in(30)));
    std::string bytes(size_t(i % 3) * 100, '\0');  // every third says nothing
    for (char& c : bytes) c = char(random());
    if (!bytes.empty()) strangers.back().write(bytes.data(), bytes.size(), in(30));
    if (i % 4 == 3) strangers.pop_back();  // hangs up
  }
  auto other = std::async(std::launch::async, [&] {
    // One who knows the token but not the secret, and one the other way round.
    const std::string context = "tcp link of rank 1 to rank 0, token ";
    Socket no_secret = Socket::connect(where.address, where.port, in(30));
    CHECK_FAILS(authentication, authenticate(no_secret, Role::connector,
                                             {"guess", context + where.token, 0}, in(30)));
    Socket no_token = Socket::connect(where.address, where.port, in(30));
    CHECK_FAILS(authentication, authenticate(no_token, Role::connector,
                                             {"between us", context + where.address, 0}, in(30)));
    // He may come in, but has no place: socket 9 of 2.
    Socket out_of_range = Socket::connect(where.address, where.port, in(30));
    authenticate(out_of_range, Role::connector, {"between us", context + where.token, 9}, in(30));
    return pending_b->connect(offer_a, in(30));
  });
  a.link = pending_a->connect(offer_b, in(60));
  b.link = other.get();
  a.link->attach(a.region);
  const Target to_a = b.link->import(a.link->key(a.region));
  const auto bytes = patterned(4, 1 << 20);
  put(b, to_a, 0, bytes, 20);
  until(a, [&] {
    b.link->progress();
    return a.arrived(20) == 1;
  });
  CHECK(matches(a.memory.data(), 4, bytes.size()));
}

TEST(tcp_wrong_offers_are_refused) {
  Side a(16), b(16);
  auto pending_a = prepare_tcp(options(0, a, 2), {});
  auto pending_b = prepare_tcp(options(1, b, 2), {});
  const std::string good_a = pending_a->offer(), good_b = pending_b->offer();
  CHECK_FAILS(protocol, pending_a->connect("", in(10)));
  CHECK_FAILS(protocol, pending_a->connect(good_a, in(10)));  // bytes are left
  CHECK_FAILS(protocol, pending_b->connect(good_b, in(10)));
  CHECK_FAILS(protocol, pending_b->connect("\x02" + good_a.substr(1), in(10)));
  for (size_t n = 0; n < good_a.size(); ++n)
    CHECK_FAILS(protocol, pending_b->connect(good_a.substr(0, n), in(10)));
  CHECK_FAILS(timeout, pending_a->connect(good_b, Clock::now() + std::chrono::milliseconds(50)));
}

TEST(tcp_options_are_checked) {
  Side a(16);
  LinkOptions o = options(0, a, 0);
  CHECK_FAILS(invalid, prepare_tcp(o));
  o = options(0, a, kTcpSockets + 1);
  CHECK_FAILS(invalid, prepare_tcp(o));
  o = options(0, a, 2);
  o.address.clear();
  CHECK_FAILS(invalid, prepare_tcp(o));
  o = options(0, a, 2);
  o.address = "0.0.0.0";
  o.secret.clear();
  CHECK_FAILS(authentication, prepare_tcp(o));
}
