// How a TCP link comes to be: who listens, who connects, and who is let in.
#include <poll.h>

#include <algorithm>
#include <list>
#include <random>
#include <vector>

#include "auth.h"
#include "error.h"
#include "join_messages.h"
#include "tcp.h"

namespace eager::comm {
namespace {

constexpr size_t kCallers = 128;  // connections that have not authenticated yet, at most

// Fresh for every link: a connection that was made for another one is none for this one.
std::string random_token() {
  std::random_device device;
  std::string token;
  for (size_t i = 0; i < TcpOffer::kToken; ++i) token.push_back(char(device() & 0xff));
  return token;
}

std::string context_of(const std::string& token, int listener, int connector) {
  return "tcp link of rank " + std::to_string(connector) + " to rank " + std::to_string(listener) +
         ", token " + token;
}

// Somebody who has connected and not proved anything yet.
class Caller {
 public:
  Caller(Socket socket, const Credentials& credentials)
      : socket_(std::move(socket)), handshake_(Role::acceptor, credentials) {
    say();
  }

  // Reads what has come.  False: not the peer, drop it.
  bool step() {
    try {
      while (handshake_.wanted()) {
        char buffer[256];
        const size_t most = std::min(sizeof buffer, handshake_.wanted());
        const size_t n = socket_.try_read(buffer, most);
        if (!n) break;
        handshake_.take(buffer, n);
        say();
      }
      return good_ && !handshake_.failed();
    } catch (const Error&) {
      return false;
    }
  }
  bool done() const { return handshake_.done(); }
  uint64_t identity() const { return handshake_.peer_identity(); }
  int fd() const { return socket_.fd(); }
  Socket take() { return std::move(socket_); }

 private:
  // A fresh connection has room for the few bytes of a handshake.
  void say() {
    const std::string out = handshake_.output();
    if (!out.empty() && socket_.try_write(out.data(), out.size()) != out.size()) good_ = false;
  }

  Socket socket_;
  Handshake handshake_;
  bool good_ = true;
};

class PendingTcp final : public PendingLink {
 public:
  PendingTcp(const LinkOptions& options, const TcpTuning& tuning)
      : options_(options), tuning_(tuning) {
    if (options.sockets < 1 || options.sockets > kTcpSockets)
      fail(ErrorKind::invalid, "tcp", "wrong number of sockets",
           "1 to " + std::to_string(kTcpSockets), std::to_string(options.sockets));
    if (!listens()) return;
    if (options.address.empty()) fail(ErrorKind::invalid, "tcp", "no address to listen on");
    listener_ = Listener::tcp(options.address, 0, int(kCallers));
    require_secret("tcp", options.secret, listener_.address());
    token_ = random_token();
  }

  std::string offer() override {
    TcpOffer mine;
    if (listens()) {
      mine.address = options_.address;
      mine.port = listener_.port();
      mine.sockets = uint8_t(options_.sockets);
      mine.token = token_;
    }
    return mine.encode(listens());
  }

  std::unique_ptr<Link> connect(const std::string& peer_offer, Deadline deadline) override {
    const TcpOffer theirs = TcpOffer::decode(peer_offer, !listens());
    if (theirs.version != TcpOffer::kVersion)
      fail(ErrorKind::protocol, "tcp", rank(options_.peer) + " speaks another version",
           std::to_string(TcpOffer::kVersion), std::to_string(theirs.version),
           "run the same version on every rank", options_.peer);
    if (listens()) return std::make_unique<TcpLink>(options_, tuning_, accept(deadline));
    std::vector<Socket> sockets;
    for (uint8_t i = 0; i < theirs.sockets; ++i) {
      sockets.push_back(Socket::connect(theirs.address, theirs.port, deadline));
      const std::string context = context_of(theirs.token, options_.peer, options_.rank);
      authenticate(sockets.back(), Role::connector, {options_.secret, context, i}, deadline);
    }
    return std::make_unique<TcpLink>(options_, tuning_, std::move(sockets));
  }

 private:
  bool listens() const { return options_.rank < options_.peer; }
  static std::string rank(int r) { return "rank " + std::to_string(r); }

  // Talks to everyone who comes at the same time, so that a stranger who says nothing or nonsense
  // holds nobody up.  When too many do, the oldest goes.
  std::vector<Socket> accept(Deadline deadline) {
    const Credentials credentials{options_.secret, context_of(token_, options_.rank, options_.peer),
                                  0};
    std::vector<Socket> sockets(size_t(options_.sockets));
    std::list<Caller> callers;
    for (size_t missing = sockets.size(); missing;) {
      std::vector<pollfd> wait{{listener_.fd(), POLLIN, 0}};
      for (const Caller& c : callers) wait.push_back({c.fd(), POLLIN, 0});
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      if (left.count() <= 0)
        fail(ErrorKind::timeout, "tcp",
             rank(options_.peer) + " did not connect to " + listener_.address().text(),
             std::to_string(sockets.size()) + " connections",
             std::to_string(sockets.size() - missing) + " connections",
             "see that no firewall is between the hosts");
      ::poll(wait.data(), wait.size(), int(std::min<int64_t>(left.count() + 1, 100)));
      options_.watch();
      for (auto c = callers.begin(); c != callers.end();) {
        const bool good = c->step();
        if (good && c->done() && c->identity() < sockets.size() && !sockets[c->identity()]) {
          const size_t i = c->identity();
          sockets[i] = c->take();
          --missing;
        }
        if (!good || c->done())
          c = callers.erase(c);
        else
          ++c;
      }
      while (std::optional<Socket> socket = listener_.try_accept()) {
        if (callers.size() == kCallers) callers.pop_front();
        try {
          callers.emplace_back(std::move(*socket), credentials);
        } catch (const Error&) {
          continue;  // it has hung up already
        }
      }
    }
    return sockets;
  }

  const LinkOptions options_;
  const TcpTuning tuning_;
  Listener listener_;
  std::string token_;
};

}  // namespace

std::unique_ptr<PendingLink> prepare_tcp(const LinkOptions& options, const TcpTuning& tuning) {
  return std::make_unique<PendingTcp>(options, tuning);
}

}  // namespace eager::comm
