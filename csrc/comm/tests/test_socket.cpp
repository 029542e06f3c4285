// Sockets: addresses, names, deadlines, and what a closed connection looks like.
#include <fcntl.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "comm/socket.h"
#include "test.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

Deadline soon() { return Clock::now() + 60s; }

std::pair<Socket, Socket> connected(const std::string& host) {
  Listener listener = Listener::tcp(host, 0);
  Socket client = Socket::connect(host, listener.port(), soon());
  return {listener.accept(soon()), std::move(client)};
}

std::string name() { return "eager-jit-test-" + std::to_string(::getpid()); }

}  // namespace

TEST(socket_sends_and_receives) {
  auto [server, client] = connected("127.0.0.1");
  CHECK(server.loopback() && client.loopback());
  CHECK(client.peer().text() == server.local().text());
  CHECK(client.local().text() == "127.0.0.1:" + std::to_string(client.local().port()));
  std::string sent(3'000'000, '\0'), got(sent.size(), 'x');  // more than the buffers hold
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 2654435761u >> 24);
  auto writing = std::async(std::launch::async,
                            [&, &c = client] { c.write(sent.data(), sent.size(), soon()); });
  server.read(got.data(), got.size(), soon());
  writing.get();
  CHECK(got == sent);
  CHECK(server.try_read(got.data(), 1) == 0);
}

TEST(socket_over_ipv6_and_by_name) {
  CHECK(connected("localhost").first.loopback());
  std::optional<Listener> v6;
  try {
    v6 = Listener::tcp("::1", 0);
  } catch (const Error& e) {  // this host has no IPv6, and says so
    CHECK(e.kind == ErrorKind::system);
    return;
  }
  Socket client = Socket::connect("::1", v6->port(), soon());
  CHECK(client.loopback());
  CHECK(client.peer().text() == "[::1]:" + std::to_string(v6->port()));
  CHECK(v6->accept(soon()).peer().port() == client.local().port());
}

TEST(socket_listens_everywhere) {
  Listener listener = Listener::tcp("", 0);
  CHECK(!listener.address().loopback());
  Socket client = Socket::connect("127.0.0.1", listener.port(), soon());
  Socket server = listener.accept(soon());
  CHECK(server.loopback());  // an IPv4 address within IPv6 too
}

TEST(socket_over_unix) {
  Listener listener = Listener::local(name());
  CHECK(listener.address().text() == "unix:" + name() && listener.port() == 0);
  Socket client = Socket::connect_local(name(), soon());
  Socket server = listener.accept(soon());
  client.write("hello", 5, soon());
  char bytes[5];
  server.read(bytes, 5, soon());
  CHECK(std::string(bytes, 5) == "hello");
  CHECK_FAILS(system, Listener::local(name()));  // taken
  CHECK_FAILS(system, Socket::connect_local(name() + "-nobody", soon()));
  CHECK_FAILS(invalid, Listener::local(""));
  CHECK_FAILS(invalid, Listener::local(std::string(108, 'x')));
  CHECK(Listener::local(std::string(107, 'x')).fd() >= 0);
}

TEST(socket_descriptors_are_not_inherited_and_do_not_block) {
  auto [server, client] = connected("127.0.0.1");
  for (const int fd : {server.fd(), client.fd()}) {
    CHECK(::fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK(::fcntl(fd, F_GETFL) & O_NONBLOCK);
  }
}

TEST(socket_deadlines) {
  Listener listener = Listener::tcp("127.0.0.1", 0);
  CHECK_FAILS(timeout, listener.accept(Clock::now() + 10ms));
  CHECK(!listener.try_accept());
  auto [server, client] = connected("127.0.0.1");
  char byte;
  CHECK_FAILS(timeout, client.read(&byte, 1, Clock::now() + 10ms));
  CHECK(client.read_some(&byte, 1, Clock::now()) == 0);
  const std::string much(1 << 20, 'x');
  const auto fill = [&, &c = client] {
    for (;;) c.write(much.data(), much.size(), Clock::now() + 50ms);
  };
  CHECK_FAILS(timeout, fill());
  CHECK_FAILS(timeout, Socket::connect("no-such-host.invalid", 1, Clock::now() - 1s));
}

TEST(socket_tells_of_the_end) {
  auto [server, client] = connected("127.0.0.1");
  server.write("last", 4, soon());
  server = Socket();
  char bytes[5];
  CHECK_FAILS(peer_lost, client.read(bytes, 5, soon()));
  CHECK(std::string(bytes, 4) == "last");
  const auto write = [&, &c = client] {
    for (;;) c.write(bytes, 5, soon());
  };
  CHECK_FAILS(peer_lost, write());
}

TEST(socket_connects_to_nobody) {
  const uint16_t port = Listener::tcp("127.0.0.1", 0).port();
  CHECK_FAILS(system, Socket::connect("127.0.0.1", port, soon()));
  CHECK_FAILS(system, Listener::tcp("192.0.2.1", 0));  // not an address of this host
  Listener listener = Listener::tcp("127.0.0.1", 0);
  CHECK_FAILS(system, Listener::tcp("127.0.0.1", listener.port()));  // taken
}

TEST(address_towards_a_host_is_one_that_it_reaches) {
  CHECK(address_towards("127.0.0.1", 9) == "127.0.0.1");
  CHECK(address_towards("localhost", 9).size() >= 3);
}
