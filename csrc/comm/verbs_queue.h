// One queue pair to a peer, with its completion queue and its flow control.
//
// Every WRITE with an immediate takes a receive that the peer posted.  Both sides post `depth` of
// them before they connect.  When a quarter is used and posted anew, the owner writes how many
// that makes so far into the sender's credit word, by an RDMA WRITE that takes no receive itself;
// the sender never has more than `depth` unanswered.  So no receiver is ever found not ready.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "verbs.h"
#include "verbs_device.h"
#include "verbs_memory.h"

namespace eager::comm::verbs {

// One per rail, in registered memory.
struct alignas(128) CreditWords {
  std::atomic<uint32_t> granted;            // by the peer, to us
  std::atomic<uint32_t> closed;             // by the peer: it has all it waits for
  alignas(64) std::atomic<uint32_t> grant;  // the sources of our writes to these
  std::atomic<uint32_t> closing;
};

// What the other end of a rail must know.  Sent as it is: both ends have one byte order, or the
// magic number of the offer does not match.
struct RailOffer {
  uint32_t queue;  // number of the queue pair
  uint32_t psn;    // of the first packet
  uint32_t mtu;    // code
  uint32_t depth;  // receives posted
  uint64_t credit_address;
  uint32_t credit_key;
  uint16_t lid;
  uint8_t ethernet;
  uint8_t reserved;
  uint8_t gid[16];
};

struct Write {
  const void* source;
  uint32_t length;  // 0: nothing but the immediate
  uint32_t local_key;
  uint64_t remote;
  uint32_t remote_key;
  bool inlined = false;    // the source is copied by the call
  bool signaled = false;   // its completion must be seen soon: someone waits for the source
  bool immediate = false;  // takes a credit
  uint32_t value = 0;      // of the immediate
};

class Rail {
 public:
  // `words`: this rail's, inside `control`.  Throws Error(system).
  Rail(VerbsContext&, const Port&, CreditWords* words, Pinned control);
  ~Rail();
  Rail(const Rail&) = delete;

  RailOffer offer() const;
  // Throws Error(protocol) for an offer that makes no sense, Error(system).
  void connect(const RailOffer& peer);

  // Is there room for one more write, and for its immediate?  Throws Error(protocol) when the
  // peer grants what it cannot have.
  bool room(bool immediate) const;
  // Posts a write; room() said yes.  Returns its number, from 0.
  uint64_t post(const Write&);
  // All writes before this number are done: the bytes are at the peer, the source is free.
  uint64_t completed() const { return completed_.load(std::memory_order_acquire); }
  uint64_t posted() const { return posted_.load(std::memory_order_relaxed); }

  // Reads completions; gives immediates to the function.  At most some hundreds at a time.
  // True if there was anything.  Throws Error(peer_lost).  One thread at a time.
  bool poll(const std::function<void(uint32_t)>& arrived);
  // `n` immediates have been dealt with: their receives are posted anew.  The thread that polls.
  void release(uint32_t n);
  // Asks for an event at the next completion, after taking those that came.  As poll().
  void arm();
  int descriptor() const { return channel_->fd; }
  // Tells the peer that this end closes.  Done after all other writes: completed() then reaches
  // posted(), unless the peer has closed too.
  void close();
  bool peer_closed() const { return words_->closed.load(std::memory_order_acquire) != 0; }
  // Fails everything that is under way; poll() then drops it silently.
  void stop();

  const Port& port() const { return port_; }
  uint32_t max_inline() const { return max_inline_; }
  uint32_t max_message() const { return port_.attributes.max_msg_sz; }

 private:
  void receive(uint32_t n);
  void grant();
  void write_word(std::atomic<uint32_t>& source, uint32_t value, uint64_t remote);
  uint64_t post_locked(const Write&);
  void destroy();

  const Api& api_;
  const Port port_;
  CreditWords* const words_;
  const Pinned control_;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* cq_ = nullptr;
  ibv_qp* qp_ = nullptr;
  uint32_t psn_ = 0, depth_ = 0, send_depth_ = 0, max_inline_ = 0;
  RailOffer peer_{};
  std::atomic<bool> stopped_{false};

  std::mutex posting_;  // one post at a time: numbers are in the queue's order
  std::atomic<uint64_t> posted_{0};
  uint64_t signaled_ = 0;                // writes posted up to the last signaled one
  std::atomic<uint32_t> immediates_{0};  // posted

  std::atomic<uint64_t> completed_{0};
  uint32_t released_ = 0, reposted_ = 0, granted_ = 0;  // receives; the thread that polls
  uint64_t granting_ = 0;                               // number after the last grant's write
};

}  // namespace eager::comm::verbs
