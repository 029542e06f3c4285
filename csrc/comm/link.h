// One transport between this rank and one peer.  Mesh owns one link per peer.
//
// Links are made by Mesh once both sides have agreed on a transport over an authenticated control
// connection (control.h); each has a `prepare` that gives what to tell the peer, and a `connect`
// that takes what the peer told.  Their progress needs no thread of their own: Mesh's I/O thread
// watches `descriptors()` and calls `progress()`, and so does whoever waits.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "counters.h"
#include "error.h"
#include "fabric.h"

namespace eager::comm {

// A region with what links need beyond its address.  Kept by Mesh.
struct Registered : Region {
  bool device = false;  // GPU memory
  int dmabuf = -1;
};

struct LinkOptions {
  int rank = 0, peer = 0;        // tcp: the lower rank listens, the higher connects
  Counters* counters = nullptr;  // what the peer advances here (arrivals from it)
  Stats* stats = nullptr;        // Mesh counts puts; links count the copies they make (staged)
  Duration timeout{};            // of a put that waits for flow control
  std::string address;           // tcp: numeric address to listen on
  std::string secret;            // proves who is at the other end of data sockets
  int sockets = 2;               // tcp: data sockets
  std::string devices;           // verbs: as MeshOptions::devices
  // Called some ten times a second while connect() waits; what it throws ends the wait.
  std::function<void()> watch = [] {};
};

class Link {
 public:
  virtual ~Link() = default;
  virtual const char* name() const = 0;

  // Called for every region, those made before the link and those made later.
  virtual void attach(const Registered&) = 0;
  virtual void detach(const Registered&) = 0;
  virtual Key key(const Registered&) = 0;
  virtual Target import(const Key&) = 0;  // as Fabric::import; `peer` is filled in by Mesh

  // As Fabric's.  Thread-safe.
  virtual uint64_t put(const Target&, size_t offset, const Piece* pieces, int n,
                       uint32_t counter) = 0;
  virtual bool is_sent(uint64_t ticket) = 0;

  // Handles whatever has come; never blocks.  Several threads may call it: one works, the others
  // return at once.  Throws Error(peer_lost) when the peer's end is gone, Error(protocol) when
  // it sent nonsense; Mesh then declares the peer lost.
  virtual void progress() = 0;
  // Readable when progress() has something to do (a link that also waits until it can write gives
  // an epoll of its own).  Empty for shm.  A link whose descriptors must
  // be armed (verbs completion channels) does so in arm(), which Mesh calls before it sleeps and
  // which returns false when there is something to do already.
  virtual std::vector<int> descriptors() const { return {}; }
  virtual bool arm() { return true; }
  // True when writes into this rank's memory and its counters happen without progress() (shm).
  virtual bool passive() const { return false; }
  // The peer was declared lost: wake and fail whoever is inside put().
  virtual void abandon() = 0;
};

// A link half made: tells the peer how to reach it (over the control connection, which is
// authenticated), then is joined to what the peer told.
class PendingLink {
 public:
  virtual ~PendingLink() = default;
  virtual std::string offer() = 0;  // at most kMaxOffer bytes, any content
  // Both sides call this at about the same time, with one pair of ranks after another in an order
  // that cannot deadlock.  Throws Error(protocol) for an offer that no correct peer makes,
  // Error(timeout) at the deadline.
  virtual std::unique_ptr<Link> connect(const std::string& peer_offer, Deadline) = 0;
};
inline constexpr size_t kMaxOffer = 4096;

}  // namespace eager::comm
