// Who lives, who waits for whom, and who is to blame when a wait cannot end.
//
// Every rank tells every other in its heartbeats for which ranks it waits, in which group.  When a
// wait passes its deadline, the chain of these reports is followed: the rank at its end, which
// waits for nobody, is the culprit.  A rank that gives up an operation tells the others whom it
// blames, so that those who wait for it blame the same rank instead of it.
//
// No I/O here: mesh.cpp feeds what comes over the control connections.
#pragma once
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "error.h"
#include "fabric.h"

namespace eager::comm {

inline constexpr uint32_t kEveryGroup = UINT32_MAX;

// Who a rank waits for, as it says in its heartbeats.
struct WaitReport {
  uint32_t group = 0;
  uint64_t sequence = 0;
  int peer = -1;
  uint64_t milliseconds = 0;  // since when
  std::string op;
};

// What a rank says when it gives up.
struct Failure {
  uint32_t group = kEveryGroup;
  int because = -1;  // the rank to blame; -1: nobody in particular
  std::string why;
};

// Payloads of heartbeat and failed messages.  The decoders throw Error(protocol).
std::string encode_heartbeat(uint64_t answer, const std::vector<WaitReport>&);
std::vector<WaitReport> decode_heartbeat(const std::string&, int size, uint64_t* answer);
std::string encode_failure(const Failure&);
Failure decode_failure(const std::string&, int size);

// Thread-safe.
class Liveness {
 public:
  Liveness(int rank, int size, Duration heartbeat);

  // What came from peers.
  void heard(int peer);  // anything
  void heartbeat(int peer, uint64_t answer, std::vector<WaitReport>);
  void failed(int peer, Failure);
  bool give_up(uint32_t group);  // this rank did; false if it had before
  bool failed(uint32_t group) const;
  void left(int peer);
  void gone(int peer);                          // left, and all that it sent has been read
  bool lose(int peer, const std::string& why);  // false if it was lost or had left before
  std::vector<int> silent();                    // who has not been heard for too long
  void pardon();                                // this process itself stood still: start anew

  bool alive(int peer) const { return state(peer) == State::alive; }
  bool departed(int peer) const { return state(peer) == State::left; }
  bool has_left(int peer) const { return departed(peer) || state(peer) == State::gone; }
  int lost(std::string* why) const;

  // Throws Error(peer_lost) if a wait for these peers, in that group, cannot end: because one was
  // lost or gave up, or all have left.
  void check(const int* peers, size_t n, const Waiting&) const;
  // Throws Error(peer_lost) for a put to a peer that is not there.
  void check_put(int peer) const;
  // The same for an import.  Who left in order may have done its part before this rank looks.
  void check_import(int peer) const;

  // The waits of this rank: while one is listed, heartbeats tell of it.
  class Listed {
   public:
    Listed(Liveness& l, int peer, const Waiting& w, Clock::time_point since);
    ~Listed();

   private:
    Liveness& owner_;
    std::list<std::pair<WaitReport, Clock::time_point>>::iterator at_;
  };
  std::vector<WaitReport> waits() const;

  // A wait has passed its deadline: follows the chain, if it was for one peer.  ask(rank, n) has to
  // make that rank send a heartbeat with the answer n.  Throws Error(peer_lost) with the culprit,
  // or Error(timeout) when ranks wait for each other in a circle.
  [[noreturn]] void overdue(const int* peers, size_t n, const Waiting&, Clock::time_point since,
                            const std::function<void(int, uint64_t)>& ask);

 private:
  enum class State : uint8_t { alive, left, gone, lost };
  struct Peer {
    std::atomic<State> state{State::alive};
    std::string why;  // it was lost
    Clock::time_point heard;
    uint64_t answer = 0;
    std::vector<WaitReport> waits;
    std::map<uint32_t, Failure> failures;  // by group
  };
  State state(int peer) const { return at(peer).state.load(std::memory_order_acquire); }
  Peer& at(int peer) { return peers_[static_cast<size_t>(peer)]; }
  const Peer& at(int peer) const { return peers_[static_cast<size_t>(peer)]; }
  struct Culprit {
    int rank;
    std::string why;
  };
  Culprit culprit(int peer, const Failure&) const;  // of a failure that `peer` told of
  void check_locked(int peer, const Waiting&) const;
  [[noreturn]] void refuse(const char* op, int peer) const;
  [[noreturn]] void blame(int peer, const std::string& why, const Waiting&) const;

  const int rank_, size_;
  const Duration heartbeat_;
  std::unique_ptr<Peer[]> peers_;
  std::atomic<bool> trouble_{false};  // somebody failed, left or was lost: check() looks closer
  mutable std::mutex mutex_;
  std::condition_variable answered_;
  std::list<std::pair<WaitReport, Clock::time_point>> waits_;
  std::set<uint32_t> given_up_;  // groups
  uint64_t asked_ = 0;
};

// Of "all_reduce: rank 3 is lost: it hangs" the "it hangs".
std::string reason_of(const std::exception&);

}  // namespace eager::comm
