#include "liveness.h"

#include <algorithm>

#include "frame.h"

namespace eager::comm {
namespace {

constexpr size_t kMaxWaits = 32;       // told in one heartbeat
constexpr size_t kMaxOp = 32;          // bytes of an operation's name
constexpr size_t kMaxWhy = 512;        // bytes of an explanation
constexpr size_t kMaxFailures = 1024;  // groups of one peer that have failed

std::string seconds(Duration d) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(d).count();
  std::string text = std::to_string(ms / 1000);
  if (ms % 1000) text += "." + std::to_string(1000 + ms % 1000).substr(1);
  return text + " s";
}

std::string rank_text(int rank) { return "rank " + std::to_string(rank); }

uint64_t milliseconds_since(Clock::time_point t) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - t).count());
}

int read_rank(Reader& r, int size, bool or_none) {
  const uint32_t v = r.u32();
  if (v == UINT32_MAX && or_none) return -1;
  if (v >= static_cast<uint32_t>(size)) fail(ErrorKind::protocol, "control", "no such rank");
  return static_cast<int>(v);
}

}  // namespace

std::string in_flight(const Waiting& w) {
  return std::string(w.op) + ", call " + std::to_string(w.sequence) + " of group " +
         std::to_string(w.group);
}

std::string reason_of(const std::exception& e) {
  const std::string text = e.what();
  const std::string line = text.substr(0, text.find('\n'));
  const std::string mark = " is lost: ";
  const size_t at = line.find(mark);
  if (at != std::string::npos) return line.substr(at + mark.size());
  const size_t colon = line.find(": ");
  return colon == std::string::npos ? line : line.substr(colon + 2);
}

std::string encode_heartbeat(uint64_t answer, const std::vector<WaitReport>& waits) {
  Writer w;
  const size_t n = std::min(waits.size(), kMaxWaits);
  w.u64(answer).u8(static_cast<uint8_t>(n));
  for (size_t i = 0; i < n; ++i)
    w.u32(waits[i].group)
        .u64(waits[i].sequence)
        .u32(static_cast<uint32_t>(waits[i].peer))
        .u64(waits[i].milliseconds)
        .string(waits[i].op.substr(0, kMaxOp));
  return w.take();
}

std::vector<WaitReport> decode_heartbeat(const std::string& payload, int size, uint64_t* answer) {
  Reader r(payload);
  *answer = r.u64();
  const size_t n = r.u8();
  if (n > kMaxWaits) fail(ErrorKind::protocol, "control", "a heartbeat tells too much");
  std::vector<WaitReport> out(n);
  for (WaitReport& w : out) {
    w.group = r.u32();
    w.sequence = r.u64();
    w.peer = read_rank(r, size, false);
    w.milliseconds = r.u64();
    w.op = r.string(kMaxOp);
  }
  r.end();
  return out;
}

std::string encode_failure(const Failure& f) {
  Writer w;
  w.u32(f.group).u32(static_cast<uint32_t>(f.because)).string(f.why.substr(0, kMaxWhy));
  return w.take();
}

Failure decode_failure(const std::string& payload, int size) {
  Reader r(payload);
  Failure f;
  f.group = r.u32();
  f.because = read_rank(r, size, true);
  f.why = r.string(kMaxWhy);
  r.end();
  return f;
}

Liveness::Liveness(int rank, int size, Duration heartbeat)
    : rank_(rank),
      size_(size),
      heartbeat_(heartbeat),
      peers_(std::make_unique<Peer[]>(static_cast<size_t>(size))) {
  pardon();
}

void Liveness::heard(int peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  at(peer).heard = Clock::now();
}

void Liveness::heartbeat(int peer, uint64_t answer, std::vector<WaitReport> waits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  at(peer).answer = std::max(at(peer).answer, answer);
  at(peer).waits = std::move(waits);
  answered_.notify_all();
}

void Liveness::failed(int peer, Failure f) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& failures = at(peer).failures;
  // The first failure of a group stays: later ones follow from it.
  if (failures.size() < kMaxFailures) failures.emplace(f.group, std::move(f));
  trouble_ = true;
  answered_.notify_all();
}

bool Liveness::give_up(uint32_t group) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return given_up_.insert(group).second;
}

bool Liveness::failed(uint32_t group) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  bool known = given_up_.count(group) > 0;
  for (int p = 0; p < size_; ++p) known |= at(p).failures.count(group) > 0;
  return known;
}

void Liveness::left(int peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (alive(peer)) at(peer).state = State::left;
  trouble_ = true;
  answered_.notify_all();
}

void Liveness::gone(int peer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (departed(peer)) at(peer).state = State::gone;
}

bool Liveness::lose(int peer, const std::string& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!alive(peer)) return false;
  at(peer).why = why;
  at(peer).state = State::lost;
  trouble_ = true;
  answered_.notify_all();
  return true;
}

std::vector<int> Liveness::silent() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto limit = Clock::now() - heartbeat_;
  std::vector<int> out;
  for (int p = 0; p < size_; ++p)
    if (p != rank_ && alive(p) && at(p).heard < limit) out.push_back(p);
  return out;
}

void Liveness::pardon() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int p = 0; p < size_; ++p) at(p).heard = Clock::now();
}

int Liveness::lost(std::string* why) const {
  if (!trouble_) return -1;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int p = 0; p < size_; ++p) {
    if (state(p) != State::lost) continue;
    if (why) *why = at(p).why;
    return p;
  }
  return -1;
}

void Liveness::blame(int peer, const std::string& why, const Waiting& w) const {
  fail(ErrorKind::peer_lost, w.op, rank_text(peer) + " is lost: " + why, "",
       "in flight: " + in_flight(w), "", peer);
}

void Liveness::check(const int* peers, size_t n, const Waiting& w) const {
  if (!trouble_.load(std::memory_order_acquire)) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t left = 0;
  for (size_t i = 0; i < n; ++i) {
    check_locked(peers[i], w);
    left += at(peers[i]).state == State::gone;
  }
  if (n > 0 && left == n) blame(peers[n - 1], "it left the job", w);
}

void Liveness::check_locked(int peer, const Waiting& w) const {
  const Peer& p = at(peer);
  for (const uint32_t group : {w.group, kEveryGroup}) {
    const auto it = p.failures.find(group);
    if (it == p.failures.end()) continue;
    const Failure& f = it->second;
    if (f.because < 0)
      fail(ErrorKind::timeout, w.op, rank_text(peer) + " gave up: " + f.why, "",
           "in flight: " + in_flight(w));
    const Culprit c = culprit(peer, f);
    blame(c.rank, c.why, w);
  }
  if (p.state == State::lost) blame(peer, p.why, w);
}

Liveness::Culprit Liveness::culprit(int peer, const Failure& f) const {
  if (f.because == rank_) return {peer, "it gave up waiting for this rank: " + f.why};
  const bool hearsay = f.why.find(" says)") != std::string::npos;
  return {f.because, hearsay ? f.why : f.why + " (" + rank_text(peer) + " says)"};
}

void Liveness::check_put(int peer) const {
  if (!trouble_.load(std::memory_order_relaxed)) return;
  if (!alive(peer)) refuse("put", peer);
}

void Liveness::check_import(int peer) const {
  if (state(peer) == State::lost) refuse("import", peer);
}

// A peer that ended because it had lost another rank is not the one to blame.
void Liveness::refuse(const char* op, int peer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Peer& p = at(peer);
  Culprit c{peer, state(peer) == State::lost ? p.why : "it left the job"};
  for (const auto& [group, f] : p.failures) {
    if (f.because < 0) continue;
    c = culprit(peer, f);
    break;
  }
  fail(ErrorKind::peer_lost, op, rank_text(c.rank) + " is lost: " + c.why, "", "", "", c.rank);
}

Liveness::Listed::Listed(Liveness& l, int peer, const Waiting& w, Clock::time_point since)
    : owner_(l) {
  WaitReport report{w.group, w.sequence, peer, 0, w.op};
  const std::lock_guard<std::mutex> lock(l.mutex_);
  at_ = l.waits_.insert(l.waits_.end(), {std::move(report), since});
}

Liveness::Listed::~Listed() {
  const std::lock_guard<std::mutex> lock(owner_.mutex_);
  owner_.waits_.erase(at_);
}

std::vector<WaitReport> Liveness::waits() const {
  std::vector<WaitReport> out;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [report, since] : waits_) {
    out.push_back(report);
    out.back().milliseconds = milliseconds_since(since);
  }
  return out;
}

void Liveness::overdue(const int* peers, size_t n, const Waiting& w, Clock::time_point since,
                       const std::function<void(int, uint64_t)>& ask) {
  const std::string patience = seconds(Clock::now() - since);
  if (n != 1)
    fail(ErrorKind::timeout, w.op, "nothing came from any rank within " + patience, "",
         "in flight: " + in_flight(w));
  std::vector<int> chain{rank_};
  int current = peers[0];
  for (;;) {
    if (std::find(chain.begin(), chain.end(), current) != chain.end()) break;
    chain.push_back(current);
    uint64_t question;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      question = ++asked_;
    }
    ask(current, question);
    std::unique_lock<std::mutex> lock(mutex_);
    const Peer& p = at(current);
    const bool answer = answered_.wait_for(lock, heartbeat_, [&] {
      return p.answer >= question || p.state != State::alive || p.failures.count(w.group) ||
             p.failures.count(kEveryGroup);
    });
    check_locked(current, w);
    if (!answer) blame(current, "it is silent for " + seconds(heartbeat_), w);
    if (p.state == State::left || p.state == State::gone) blame(current, "it left the job", w);
    const WaitReport* next = nullptr;
    for (const WaitReport& r : p.waits)  // in this group, else the oldest
      if (!next || (r.group == w.group) > (next->group == w.group)) next = &r;
    if (!next) blame(current, "it did not join " + std::string(w.op) + " within " + patience, w);
    current = next->peer;
  }
  std::string circle;
  for (const int r : chain) circle += std::to_string(r) + " -> ";
  fail(ErrorKind::timeout, w.op,
       "no end after " + patience + ": ranks wait for each other, " + circle +
           std::to_string(current),
       "all ranks make the same calls in the same order", "in flight: " + in_flight(w));
}

}  // namespace eager::comm
