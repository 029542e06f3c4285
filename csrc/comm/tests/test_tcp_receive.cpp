// The receiving half of a TCP link without sockets: what right and wrong bytes do.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "comm/tcp_receive.h"
#include "test.h"

using namespace eager::comm;

namespace {

constexpr uint32_t kCounter = 20;

struct Receiving {
  std::unique_ptr<Counters> counters = std::make_unique<Counters>();
  std::vector<std::byte> memory;
  TcpReceiver receiver;

  explicit Receiving(size_t bytes, int streams = 2)
      : memory(bytes), receiver(counters.get(), 1, streams) {
    Region region;
    region.id = 3;
    region.base = memory.data();
    region.length = bytes;
    receiver.attach(region);
  }
  uint32_t arrived() const { return counters->at[kCounter].value.load(); }

  // As a socket would; how many bytes were wanted.
  size_t feed(int stream, const std::string& bytes, size_t at_once = SIZE_MAX) {
    size_t fed = 0;
    while (fed < bytes.size()) {
      iovec to[2];
      const int n = receiver.want(stream, to);
      size_t taken = 0;
      const size_t most = std::min(at_once, bytes.size() - fed);
      for (int i = 0; i < n && taken < most; ++i) {
        const size_t part = std::min(to[i].iov_len, most - taken);
        std::memcpy(to[i].iov_base, bytes.data() + fed + taken, part);
        taken += part;
      }
      if (!taken) break;
      receiver.take(stream, taken);
      fed += taken;
    }
    return fed;
  }
};

TcpHeader header(uint64_t sequence, uint64_t offset, uint64_t length, uint32_t pieces = 1) {
  return {kTcpMagic, 3, offset, length, sequence, kCounter, pieces};
}
std::string bytes_of(const TcpHeader& h, char fill = 'x') {
  return std::string(reinterpret_cast<const char*>(&h), sizeof h) + std::string(h.length, fill);
}

}  // namespace

TEST(tcp_receive_takes_bytes_in_any_portions) {
  for (size_t at_once : {size_t(1), size_t(7), size_t(41), size_t(8192), SIZE_MAX}) {
    Receiving r(50000, 1);
    std::string all, expected(50000, '\0');
    uint64_t sequence = 0, offset = 0;
    for (size_t n : {0, 1, 100, 8152, 8153, 20000, 0, 5}) {
      const char fill = char('a' + sequence);
      all += bytes_of(header(++sequence, offset, n), fill);
      expected.replace(offset, n, n, fill);
      offset += n;
    }
    CHECK(r.feed(0, all, at_once) == all.size());
    CHECK(r.arrived() == sequence);
    CHECK(std::memcmp(r.memory.data(), expected.data(), expected.size()) == 0);
    CHECK(r.receiver.between(0));
    r.feed(0, bytes_of(header(++sequence, 0, 10)).substr(0, 49), at_once);
    CHECK(!r.receiver.between(0));
  }
}

TEST(tcp_receive_advances_counters_in_order) {
  Receiving r(100, 3);
  r.feed(1, bytes_of(header(2, 50, 10), 'b'));
  r.feed(2, bytes_of(header(3, 60, 0)));
  r.feed(0, bytes_of(header(1, 0, 10, 3), 'a'));
  r.feed(2, bytes_of(header(4, 70, 10, 2), 'd'));
  CHECK(r.arrived() == 0);
  // A stream may carry several pieces of one put, but nothing older than its last.
  r.feed(0, bytes_of(header(1, 10, 10, 3), 'a'));
  CHECK(r.arrived() == 0);
  r.feed(0, bytes_of(header(1, 20, 10, 3), 'a'));
  CHECK(r.arrived() == 3);
  r.feed(1, bytes_of(header(4, 80, 10, 2), 'd'));
  CHECK(r.arrived() == 4);
}

TEST(tcp_receive_holds_back_a_stream_that_is_far_ahead) {
  Receiving r(100);
  const std::string first = bytes_of(header(1, 0, 100));
  r.feed(0, first.substr(0, first.size() - 1));
  std::string rest;
  constexpr uint64_t kLast = 3 * kTcpWindow;
  for (uint64_t s = 2; s <= kLast; ++s) rest += bytes_of(header(s, 0, 0));
  const size_t fed = r.feed(1, rest);
  CHECK(fed < rest.size());
  CHECK(r.receiver.ahead(1));
  CHECK(r.arrived() == 0);
  r.feed(0, first.substr(first.size() - 1));
  CHECK(!r.receiver.ahead(1));
  CHECK(r.arrived() >= kTcpWindow);
  CHECK(r.feed(1, rest.substr(fed)) == rest.size() - fed);
  CHECK(r.arrived() == kLast);
}

TEST(tcp_receive_refuses_wrong_headers) {
  const auto refused = [](const std::vector<TcpHeader>& headers, int stream = 0) {
    Receiving r(100);
    std::string good;
    for (size_t i = 0; i + 1 < headers.size(); ++i) good += bytes_of(headers[i], '\0');
    CHECK(r.feed(0, good) == good.size());
    TcpHeader last = headers.back();
    CHECK_FAILS(protocol,
                r.feed(stream, std::string(reinterpret_cast<const char*>(&last), sizeof last) +
                                   std::string(200, 'x')));
    CHECK(std::all_of(r.memory.begin(), r.memory.end(),
                      [](std::byte b) { return b == std::byte{}; }));
  };
  TcpHeader h = header(1, 0, 10);
  h.magic ^= 1;
  refused({h});
  h = header(1, 0, 10);
  h.region = 4;
  refused({h});
  h = header(1, 0, 10);
  h.counter = kCounters;
  refused({h});
  refused({header(1, 0, 101)});
  refused({header(1, 91, 10)});
  refused({header(1, 101, 1)});
  refused({header(1, UINT64_MAX - 4, 10)});
  refused({header(1, 10, UINT64_MAX - 4)});
  refused({header(0, 0, 10)});                          // before the first
  refused({header(1, 0, 10), header(1, 0, 10)});        // again
  refused({header(1, 0, 10, 0)});                       // of no pieces
  refused({header(1, 0, 10, kTcpPieces + 1)});          // of too many
  refused({header(1, 0, 0, 2)});                        // an empty one of two
  refused({header(1, 0, 10, 2), header(1, 0, 10, 3)});  // two or three?
  refused({header(2, 0, 10, 2), header(2, 0, 10, 2), header(2, 0, 10, 2)}, 1);  // the third of two
  refused({header(3, 0, 10), header(2, 0, 10)});  // backwards on one stream
  h = header(1, 0, 10, 2);
  h.counter = kNoCounter;
  refused({header(1, 0, 10, 2), h});  // one put, two counters
}

TEST(tcp_receive_lets_go_of_released_regions) {
  Receiving r(100);
  r.feed(0, bytes_of(header(1, 0, 100)).substr(0, 60));
  r.receiver.detach(3);
  iovec to[2];
  CHECK_FAILS(protocol, r.receiver.want(0, to));
  CHECK_FAILS(protocol, r.feed(1, bytes_of(header(2, 0, 1))));
}
