// The handshake: who knows the secret gets in, and nobody else, whatever was recorded, reflected,
// swapped or changed.
#include <netinet/in.h>
#include <unistd.h>

#include <functional>
#include <future>

#include "comm/auth.h"
#include "test.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

const Credentials kAcceptor{"the secret", "context", 11}, kConnector{"the secret", "context", 22};

struct Outcome {
  bool acceptor, connector;
  std::string acceptor_why, connector_why;
};

// Runs the handshake between the two; `change` may alter each message on its way (0: hello,
// 1: answer, 2: verdict).
Outcome run(
    Handshake& a, Handshake& c,
    const std::function<void(int, std::string&)>& change = [](int, std::string&) {}) {
  for (int message = 0; message < 3; ++message) {
    std::string bytes = (message == 1 ? c : a).output();
    change(message, bytes);
    (message == 1 ? a : c).take(bytes.data(), bytes.size());
  }
  return {a.done(), c.done(), a.why(), c.why()};
}

Outcome run(const Credentials& acceptor, const Credentials& connector) {
  Handshake a(Role::acceptor, acceptor), c(Role::connector, connector);
  return run(a, c);
}

Deadline soon() { return Clock::now() + 60s; }

std::pair<Socket, Socket> connected() {
  Listener listener = Listener::tcp("127.0.0.1", 0);
  Socket client = Socket::connect("127.0.0.1", listener.port(), soon());
  return {listener.accept(soon()), std::move(client)};
}

}  // namespace

TEST(auth_lets_in_who_knows_the_secret) {
  Handshake a(Role::acceptor, kAcceptor), c(Role::connector, kConnector);
  const Outcome o = run(a, c);
  CHECK(o.acceptor && o.connector);
  CHECK(a.peer_identity() == 22 && c.peer_identity() == 11);
  CHECK(a.wanted() == 0 && c.wanted() == 0 && a.output().empty() && c.output().empty());
}

TEST(auth_with_an_empty_secret_on_both_sides) {
  const Outcome o = run(Credentials{"", "x", 1}, Credentials{"", "x", 2});
  CHECK(o.acceptor && o.connector);
}

TEST(auth_takes_bytes_as_they_come_and_none_of_what_follows) {
  Handshake a(Role::acceptor, kAcceptor), c(Role::connector, kConnector);
  const auto pass = [](Handshake& from, Handshake& to) {
    for (const char byte : from.output()) CHECK(to.take(&byte, 1) == 1);
  };
  pass(a, c);
  const std::string answer = c.output() + "what follows";
  CHECK(a.take(answer.data(), answer.size()) == answer.size() - 12);
  pass(a, c);
  CHECK(a.done() && c.done());
  CHECK(a.take("more", 4) == 0);
}

TEST(auth_refuses_another_secret_or_context) {
  for (const Credentials& other :
       {Credentials{"The secret", "context", 22}, Credentials{"the secret", "Context", 22},
        Credentials{"the secret", "", 22}}) {
    const Outcome o = run(kAcceptor, other);
    CHECK(!o.acceptor && !o.connector);
    CHECK(o.connector_why.find("another secret") != std::string::npos);
    CHECK((o.acceptor_why + o.connector_why).find("the secret\"") == std::string::npos);
  }
}

TEST(auth_says_when_one_side_has_no_secret) {
  const Credentials open{"", "context", 0};
  const Outcome first = run(kAcceptor, open), second = run(open, kConnector);
  for (const Outcome& o : {first, second}) CHECK(!o.acceptor && !o.connector);
  CHECK(first.connector_why.find("has a secret and this one has none") != std::string::npos);
  CHECK(second.connector_why.find("other one has none") != std::string::npos);
}

TEST(auth_notices_every_changed_bit) {
  for (int message = 0; message < 3; ++message) {
    const size_t bytes = message == 0 ? 48 : message == 1 ? 80 : 40;
    for (size_t bit = 0; bit < 8 * bytes; ++bit) {
      Handshake a(Role::acceptor, kAcceptor), c(Role::connector, kConnector);
      const Outcome o = run(a, c, [&](int m, std::string& s) {
        if (m == message) s[bit / 8] ^= static_cast<char>(1 << bit % 8);
      });
      CHECK(!o.connector);
      // The acceptor is convinced before its last message leaves.
      CHECK(o.acceptor == (message == 2));
    }
  }
}

TEST(auth_proves_nothing_to_who_has_not_proved_himself) {
  Handshake a(Role::acceptor, kAcceptor), c(Role::connector, {"guess", "context", 22});
  std::string verdict;
  run(a, c, [&](int m, std::string& s) {
    if (m == 2) verdict = s;
  });
  CHECK(verdict.size() == 40 && verdict[0] != 0);
  CHECK(verdict.find_first_not_of('\0', 1) == std::string::npos);
}

TEST(auth_refuses_a_replay) {
  std::string answer, verdict;
  Handshake::Nonce nonce{};
  {
    Handshake a(Role::acceptor, kAcceptor), c(Role::connector, kConnector, nonce);
    run(a, c, [&](int m, std::string& s) { (m == 1 ? answer : verdict) = s; });
    CHECK(a.done() && c.done());
  }
  Handshake a(Role::acceptor, kAcceptor);
  CHECK(a.take(answer.data(), answer.size()) == answer.size());
  CHECK(a.failed());
  // A false acceptor with a recorded verdict, and a connector even with its old nonce.
  Handshake again(Role::acceptor, kAcceptor), c(Role::connector, kConnector, nonce);
  const std::string hello = again.output();
  c.take(hello.data(), hello.size());
  c.take(verdict.data(), verdict.size());
  CHECK(c.failed());
}

TEST(auth_refuses_reflection_and_swapped_sides) {
  // Its own hello, or its own proof, sent back.
  Handshake a(Role::acceptor, kAcceptor);
  const std::string hello = a.output();
  a.take((hello + std::string(32, '\0')).data(), 80);
  CHECK(a.failed());
  Handshake other(Role::acceptor, kAcceptor), c(Role::connector, kConnector);
  const std::string first = other.output();
  c.take(first.data(), first.size());
  const std::string answer = c.output();
  const std::string verdict = std::string(8, '\0') + answer.substr(48);
  c.take(verdict.data(), verdict.size());
  CHECK(c.failed());
  // Two connectors, fed with each other's proofs.
  Handshake left(Role::connector, kConnector), right(Role::connector, kConnector);
  left.take(answer.data(), 48);
  right.take(answer.data(), 48);
  const std::string proof = std::string(8, '\0') + right.output().substr(48);
  left.take(proof.data(), proof.size());
  CHECK(left.failed());
}

TEST(auth_knows_strangers_by_their_first_bytes) {
  Handshake a(Role::acceptor, kAcceptor);
  a.output();
  CHECK(a.take("GET / HTTP/1.1\r\n", 16) == 16);
  CHECK(a.failed() && a.wanted() == 0 && a.output().empty());
  Handshake b(Role::acceptor, kAcceptor);
  b.take("E", 1);
  CHECK(!b.failed());
  b.take("x", 1);
  CHECK(b.failed());
}

TEST(auth_over_sockets) {
  auto [server, client] = connected();
  auto accepting = std::async(std::launch::async, [&s = server] {
    return authenticate(s, Role::acceptor, kAcceptor, soon());
  });
  CHECK(authenticate(client, Role::connector, kConnector, soon()) == 11);
  client.write("first", 5, soon());
  CHECK(accepting.get() == 22);
  char bytes[5];
  server.read(bytes, 5, soon());
  CHECK(std::string(bytes, 5) == "first");
}

TEST(auth_over_unix_sockets_needs_no_secret) {
  const std::string name = "eager-jit-test-auth-" + std::to_string(::getpid());
  Listener listener = Listener::local(name);
  Socket client = Socket::connect_local(name, soon());
  Socket server = listener.accept(soon());
  CHECK(client.loopback() && server.loopback());
  auto accepting = std::async(std::launch::async, [&] {
    return authenticate(server, Role::acceptor, {"", "mesh", 3}, soon());
  });
  CHECK(authenticate(client, Role::connector, {"", "mesh", 4}, soon()) == 3);
  CHECK(accepting.get() == 4);
}

TEST(auth_over_sockets_refuses) {
  auto [server, client] = connected();
  auto accepting = std::async(std::launch::async, [&s = server] {
    CHECK_FAILS(authentication, authenticate(s, Role::acceptor, kAcceptor, soon()));
  });
  CHECK_FAILS(authentication,
              authenticate(client, Role::connector, {"another", "context", 0}, soon()));
  accepting.get();
}

TEST(auth_has_a_deadline) {
  auto [server, client] = connected();
  CHECK_FAILS(timeout, authenticate(client, Role::connector, kConnector, Clock::now() + 20ms));
  CHECK_FAILS(timeout, authenticate(server, Role::acceptor, kAcceptor, Clock::now() + 20ms));
  server = Socket();
  auto [server2, client2] = connected();
  server2.release();
  CHECK_FAILS(peer_lost, authenticate(client2, Role::connector, kConnector, soon()));
}

TEST(without_a_secret_only_loopback) {
  const auto v4 = [](uint32_t host) {
    Address a;
    auto* in = reinterpret_cast<sockaddr_in*>(&a.storage);
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(host);
    a.length = sizeof *in;
    return a;
  };
  require_secret("test", "", v4(0x7f000001));
  require_secret("test", "", v4(0x7fffffff));
  require_secret("test", "secret", v4(0x0a000001));
  CHECK_FAILS(authentication, require_secret("test", "", v4(0x0a000001)));
  CHECK_FAILS(authentication, require_secret("test", "", v4(0)));
  const auto v6 = [](std::initializer_list<int> last) {
    Address a;
    auto* in = reinterpret_cast<sockaddr_in6*>(&a.storage);
    in->sin6_family = AF_INET6;
    std::copy(last.begin(), last.end(), in->sin6_addr.s6_addr + 16 - last.size());
    a.length = sizeof *in;
    return a;
  };
  require_secret("test", "", v6({1}));
  require_secret("test", "", v6({0xff, 0xff, 127, 0, 0, 1}));
  CHECK_FAILS(authentication, require_secret("test", "", v6({0xff, 0xff, 10, 0, 0, 1})));
  CHECK_FAILS(authentication, require_secret("test", "", v6({})));
}
