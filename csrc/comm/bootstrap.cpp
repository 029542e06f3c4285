#include "bootstrap.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "auth.h"
#include "frame.h"
#include "join_messages.h"
#include "liveness.h"

namespace eager::comm {
namespace {

constexpr Duration kHandshake = std::chrono::seconds(10);  // strangers are dropped after this
constexpr size_t kMaxHandshakes = 4096;

// Processes with equal names can reach each other's abstract Unix sockets: one boot of one kernel,
// one network namespace.
std::string host_name() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  if (boot.empty()) {
    utsname name{};
    uname(&name);
    boot = name.nodename;
  }
  struct stat ns{};
  if (stat("/proc/self/ns/net", &ns) != 0) return boot;
  return boot + "/" + std::to_string(ns.st_ino);
}

std::string random_name() {
  std::random_device random;
  std::string out = "eager-";
  for (int i = 0; i < 4; ++i) out += std::to_string(random()) + "-";
  return out;
}

struct Progress {  // of one peer
  bool hello = false, offer = false, ready = false;
  Abilities abilities;
  std::string offered;
};

class Bootstrap {
 public:
  Bootstrap(const MeshOptions& options, Store& store, const Segment& segment,
            const std::function<Counters*(int)>& counters, Stats* stats)
      : options_(options),
        store_(store),
        segment_(segment),
        counters_(counters),
        stats_(stats),
        deadline_(Clock::now() + options.timeout),
        transports_(options),
        progress_(static_cast<size_t>(options.size)),
        all_(static_cast<size_t>(options.size)) {}

  std::vector<Neighbour> run() {
    connect_all();
    try {
      agree();
    } catch (const Error& e) {
      give_up(e.peer, e.what());
      throw;
    } catch (const std::exception& e) {
      give_up(-1, e.what());
      throw;
    }
    return std::move(all_);
  }

 private:
  struct Caller {  // somebody who connected and has not proved who he is
    Socket socket;
    Handshake handshake;
    bool local;
    Deadline deadline;
  };

  Neighbour& at(int p) { return all_[static_cast<size_t>(p)]; }
  Progress& of(int p) { return progress_[static_cast<size_t>(p)]; }
  std::string card_key(int p) const { return options_.prefix + "mesh/" + std::to_string(p); }
  Credentials credentials() const {
    return {options_.secret, "mesh " + options_.prefix + " of " + std::to_string(options_.size),
            static_cast<uint64_t>(options_.rank)};
  }
  template <class Predicate>
  std::string who(Predicate missing) {
    std::string out;
    for (int p = 0; p < options_.size; ++p)
      if (p != options_.rank && missing(p)) out += (out.empty() ? "" : ", ") + std::to_string(p);
    return out;
  }

  void connect_all();
  Card card_of(int p);
  void connect(int p);
  void accept_higher(Listener& tcp, Listener& local);
  bool serve(Caller&);
  void join(int p, Socket, bool local);

  void agree();
  void pump(bool Progress::* what);
  void read(int p, bool Progress::* what);
  void watch();
  void handle(int p, Incoming);
  void give_up(int because, const std::string& why);

  const MeshOptions& options_;
  Store& store_;
  const Segment& segment_;
  const std::function<Counters*(int)>& counters_;
  Stats* const stats_;
  const Deadline deadline_;
  const Transports transports_;
  std::vector<Progress> progress_;
  std::vector<Neighbour> all_;
  std::string my_address_;
};

// ---- 1. connections

void Bootstrap::connect_all() {
  my_address_ = options_.address.empty() ? store_.local_host() : options_.address;
  Listener tcp = Listener::tcp(my_address_, 0);
  require_secret("join", options_.secret, tcp.address());
  Card mine;
  mine.host = options_.host.empty() ? host_name() : options_.host;
  mine.address = my_address_ = tcp.address().host();
  mine.port = tcp.port();
  mine.local_name = random_name();
  Listener local = Listener::local(mine.local_name);
  at(options_.rank).host = mine.host;
  store_.set(card_key(options_.rank), mine.encode());
  for (int p = 0; p < options_.rank; ++p) connect(p);
  accept_higher(tcp, local);
}

Card Bootstrap::card_of(int p) {
  const Duration slice = std::chrono::milliseconds(100);
  do {
    try {
      const Duration left = std::max<Duration>(deadline_ - Clock::now(), Duration(0));
      return Card::decode(store_.get(card_key(p), std::min(left, slice)));
    } catch (const Error& e) {
      if (e.kind != ErrorKind::timeout) throw;
    }
    if (options_.poll) options_.poll();
  } while (Clock::now() < deadline_);
  const std::string missing = who([&](int q) { return !store_.check({card_key(q)}); });
  fail(ErrorKind::timeout, "join", "not all ranks came within the time limit",
       std::to_string(options_.size) + " ranks", "missing: rank " + missing,
       "look at their logs; raise the timeout if they only need longer");
}

void Bootstrap::connect(int p) {
  const Card card = card_of(p);
  at(p).host = card.host;
  Socket socket;
  bool local = false;
  if (card.host == at(options_.rank).host) {
    try {
      socket = Socket::connect_local(card.local_name, deadline_);
      local = true;
    } catch (const Error&) {  // e.g. a pretended host name: TCP serves
    }
  }
  if (!local) socket = Socket::connect(card.address, card.port, deadline_);
  const uint64_t identity = authenticate(socket, Role::connector, credentials(), deadline_);
  if (identity != static_cast<uint64_t>(p))
    fail(ErrorKind::protocol, "join", "rank " + std::to_string(p) + " says that it is another",
         std::to_string(p), std::to_string(identity));
  join(p, std::move(socket), local);
}

void Bootstrap::join(int p, Socket socket, bool local) {
  at(p).control = std::make_unique<Control>(std::move(socket), local);
  if (local) at(p).regions = std::make_shared<PeerRegions>();
}

// Serves all callers at once: a stranger that says nothing holds nobody up.
void Bootstrap::accept_higher(Listener& tcp, Listener& local) {
  std::vector<Caller> callers;
  const auto missing = [&](int p) { return !at(p).control; };
  while (!who(missing).empty()) {
    if (Clock::now() >= deadline_)
      fail(ErrorKind::timeout, "join", "not all ranks came within the time limit",
           std::to_string(options_.size) + " ranks", "missing: rank " + who(missing),
           "look at their logs; raise the timeout if they only need longer");
    std::vector<pollfd> polls{{tcp.fd(), POLLIN, 0}, {local.fd(), POLLIN, 0}};
    for (const Caller& c : callers) polls.push_back({c.socket.fd(), POLLIN, 0});
    poll(polls.data(), polls.size(), 100);
    if (options_.poll) options_.poll();
    for (Listener* listener : {&tcp, &local}) {
      while (callers.size() < kMaxHandshakes) {
        std::optional<Socket> socket = listener->try_accept();
        if (!socket) break;
        callers.push_back({std::move(*socket), Handshake(Role::acceptor, credentials()),
                           listener == &local, Clock::now() + kHandshake});
      }
    }
    std::vector<Caller> left;
    for (Caller& c : callers)
      if (serve(c)) left.push_back(std::move(c));
    callers = std::move(left);
  }
}

// False when there is nothing more to do for this caller.
bool Bootstrap::serve(Caller& c) {
  try {
    for (;;) {
      const std::string out = c.handshake.output();
      if (!out.empty()) c.socket.write(out.data(), out.size(), Clock::now() + kHandshake);
      if (c.handshake.done()) break;
      if (c.handshake.failed() || Clock::now() > c.deadline) return false;
      char bytes[128];
      const size_t n =
          c.socket.try_read(bytes, std::min(sizeof bytes, c.handshake.wanted()), "join");
      if (n == 0) return true;
      c.handshake.take(bytes, n);
    }
  } catch (const Error&) {  // it hung up, or speaks something else
    return false;
  }
  const uint64_t p = c.handshake.peer_identity();
  if (p <= static_cast<uint64_t>(options_.rank) || p >= static_cast<uint64_t>(options_.size))
    return false;
  const int rank = static_cast<int>(p);
  if (!at(rank).control) join(rank, std::move(c.socket), c.local);
  return false;
}

// ---- 2 to 4. agreement

void Bootstrap::agree() {
  const int size = options_.size, rank = options_.rank;
  const Abilities& mine = transports_.abilities();
  const std::string hello = Hello{Hello::kVersion, at(rank).host, mine}.encode();
  for (Neighbour& n : all_) {
    if (!n.control) continue;
    n.control->send(Message::hello, hello);
    if (n.control->local())
      announce_region(*n.control, PeerRegions::kCountersRegion,
                      static_cast<size_t>(size) * sizeof(Counters), segment_.fd.get());
  }
  pump(&Progress::hello);

  std::vector<std::unique_ptr<PendingLink>> pending(static_cast<size_t>(size));
  for (int p = 0; p < size; ++p) {
    Neighbour& n = at(p);
    if (!n.control) continue;
    const Abilities& theirs = of(p).abilities;
    const Choice choice = p < rank ? choose(theirs, mine, n.control->local())
                                   : choose(mine, theirs, n.control->local());
    n.transport = choice.transport;
    n.reason = choice.reason;
    LinkOptions o;
    o.rank = rank;
    o.peer = p;
    o.counters = counters_(p);
    o.stats = stats_;
    o.timeout = options_.timeout;
    o.address = my_address_;
    o.secret = options_.secret;
    o.sockets = options_.tcp_sockets;
    o.devices = options_.devices;
    o.watch = [this] { watch(); };
    auto& link = pending[static_cast<size_t>(p)];
    link = transports_.prepare(n.transport, o, n.regions);
    const std::string offer = link->offer();
    if (offer.size() > kMaxOffer) fail(ErrorKind::invalid, "join", "an offer is too long");
    n.control->send(Message::offer, Proposal{n.transport, offer}.encode());
  }
  pump(&Progress::offer);
  // Ascending: every rank does its pairs in the order of (lower, higher) rank, and an order that
  // all share cannot deadlock.
  for (int p = 0; p < size; ++p)
    if (at(p).control)
      at(p).link = pending[static_cast<size_t>(p)]->connect(of(p).offered, deadline_);
  for (Neighbour& n : all_)
    if (n.control) n.control->send(Message::ready);
  pump(&Progress::ready);
}

// Handles what has come from a peer until it has got so far.  Does not read beyond its `ready`.
void Bootstrap::read(int p, bool Progress::* what) {
  try {
    while (!(of(p).*what) && !of(p).ready) {
      std::optional<Incoming> in = at(p).control->receive();
      if (!in) break;
      handle(p, std::move(*in));
    }
  } catch (const Error& e) {
    if (e.kind != ErrorKind::peer_lost || e.peer >= 0) throw;
    fail(ErrorKind::peer_lost, "join",
         "rank " + std::to_string(p) + " is lost: it went away while ranks were joining", "", "",
         "", p);
  }
}

// While a link is joined: any rank that gives up or goes away ends it for all.
void Bootstrap::watch() {
  for (int p = 0; p < options_.size; ++p)
    if (at(p).control) read(p, &Progress::ready);
  if (options_.poll) options_.poll();
}

// Handles messages until every peer has got so far.
void Bootstrap::pump(bool Progress::* what) {
  for (;;) {
    std::vector<pollfd> polls;
    bool complete = true;
    for (int p = 0; p < options_.size; ++p) {
      Neighbour& n = at(p);
      if (!n.control) continue;
      const bool flushed = n.control->flush();
      read(p, what);
      if (!(of(p).*what)) complete = false;
      const int events = (of(p).*what ? 0 : POLLIN) | (flushed ? 0 : POLLOUT);
      if (!flushed) complete = false;
      if (events) polls.push_back({n.control->fd(), static_cast<short>(events), 0});
    }
    if (complete) return;
    if (Clock::now() >= deadline_)
      fail(ErrorKind::timeout, "join", "not all ranks finished joining within the time limit", "",
           "missing: rank " + who([&](int p) { return !(of(p).*what); }));
    poll(polls.data(), polls.size(), 100);
    if (options_.poll) options_.poll();
  }
}

void Bootstrap::handle(int p, Incoming in) {
  Progress& peer = of(p);
  const auto out_of_order = [&] {
    fail(ErrorKind::protocol, "join", "rank " + std::to_string(p) + " sent messages out of order");
  };
  if (handle_region(in, at(p).regions.get())) return;
  switch (in.type) {
    case Message::hello: {
      Hello hello = Hello::decode(in.payload);
      if (peer.hello) out_of_order();
      if (hello.version != Hello::kVersion)
        fail(ErrorKind::mismatch, "join", "rank " + std::to_string(p) + " has another version",
             std::to_string(Hello::kVersion), std::to_string(hello.version),
             "install one version on all hosts");
      at(p).host = std::move(hello.host);
      peer.abilities = std::move(hello.abilities);
      peer.hello = true;
      break;
    }
    case Message::offer: {
      Proposal proposal = Proposal::decode(in.payload);
      if (!peer.hello || peer.offer) out_of_order();
      peer.offered = std::move(proposal.offer);
      peer.offer = true;
      if (!at(p).transport.empty() && at(p).transport != proposal.transport)
        fail(ErrorKind::protocol, "join", "rank " + std::to_string(p) + " chose another transport",
             at(p).transport, proposal.transport);
      break;
    }
    case Message::ready:
      if (!peer.offer || peer.ready) out_of_order();
      peer.ready = true;
      break;
    case Message::failed: {
      const Failure f = decode_failure(in.payload, options_.size);
      const int culprit = f.because >= 0 && f.because != options_.rank ? f.because : p;
      fail(ErrorKind::peer_lost, "join", "rank " + std::to_string(p) + " gave up joining: " + f.why,
           "", "", "", culprit);
    }
    case Message::goodbye:
      fail(ErrorKind::peer_lost, "join",
           "rank " + std::to_string(p) + " left while ranks were joining", "", "", "", p);
    default:
      out_of_order();
  }
}

void Bootstrap::give_up(int because, const std::string& why) {
  for (Neighbour& n : all_)
    if (n.control)
      n.control->send(Message::failed,
                      encode_failure({kEveryGroup, because, why.substr(0, why.find('\n'))}));
}

}  // namespace

std::vector<Neighbour> bootstrap(const MeshOptions& options, Store& store, const Segment& segment,
                                 const std::function<Counters*(int)>& counters, Stats* stats) {
  return Bootstrap(options, store, segment, counters, stats).run();
}

bool handle_region(Incoming& in, PeerRegions* regions) {
  if (in.type != Message::region && in.type != Message::withdraw) return false;
  if (!regions) fail(ErrorKind::protocol, "control", "a rank of another host announced memory");
  Reader r(in.payload);
  const uint32_t id = r.u32();
  if (in.type == Message::region) {
    const uint64_t length = r.u64();
    r.end();
    regions->announce(id, length, in.fd);
  } else {
    r.end();
    regions->withdraw(id);
  }
  return true;
}

void announce_region(Control& control, uint32_t id, size_t length, int fd) {
  control.send(Message::region, Writer().u32(id).u64(length).take(), fd);
}

}  // namespace eager::comm
