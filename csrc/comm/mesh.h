// The real fabric: joins the ranks of a job, chooses a transport for each pair, notices who dies.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "fabric.h"
#include "store.h"

namespace eager::comm {

struct MeshOptions {
  int rank = 0, size = 1;
  std::string prefix;     // of the keys in the store: one per incarnation of the job
  std::string secret;     // as the store's
  std::string transport;  // "shm", "tcp", "verbs"; empty: the best for each pair
  std::string address;    // to listen on and to publish; empty: that which reaches the store
  std::string host;       // ranks that say the same share memory; empty: found out.  Tests of
                          // several hosts on one machine give their own
  std::string devices;    // verbs devices, "mlx5_0,mlx5_1:1"; empty: every active port
  Duration timeout = std::chrono::seconds(300);   // of bootstrap, and default of operations
  Duration heartbeat = std::chrono::seconds(10);  // silence after which a peer is lost
  Duration spin = std::chrono::microseconds(50);  // of a wait, before it sleeps; patient: a tenth
  int tcp_sockets = 2;                            // per peer
  // Called some ten times a second by threads that wait, with no lock held; what it throws ends the
  // wait (Python: signals).
  std::function<void()> poll;
};

// Joining: every rank publishes in the store where it listens (TCP and, for its own host, an
// abstract Unix socket); the higher rank of each pair connects, both authenticate, and settle on a
// transport: the forced one; or shm when the Unix socket can be reached; or verbs when both have an
// active port of one link layer; or tcp.  The control connection stays: it carries heartbeats that
// say what the sender waits for, file descriptors of regions (Unix), and its end tells at once that
// a process died.
class Mesh final : public Fabric {
 public:
  Mesh(const MeshOptions&, Store&);  // collective; throws Error(timeout) naming who did not come
  ~Mesh() override;                  // says good-bye: peers do not take it for a death

  // Says good-bye now.  Memory stays until it is released; every other operation throws
  // Error(invalid).
  void leave();

  int rank() const override;
  int size() const override;
  int host(int rank) const override;
  const char* transport(int peer) const override;
  std::string reason(int peer) const override;
  const Region& allocate(size_t length) override;
  // Registers memory that is already there, e.g. of a GPU.  Peers cannot map it.
  const Region& adopt(void* base, size_t length, bool device = false, int dmabuf = -1);
  void release(const Region&) override;
  const Region* find(const void* data, size_t length) const override;
  Key key(const Region&, int peer) override;
  Target import(int peer, const Key&) override;
  uint64_t put(const Target&, size_t offset, const Piece* pieces, int n, uint32_t counter) override;
  void signal(int peer, uint32_t counter) override;
  void sent(int peer, uint64_t ticket, const Waiting&) override;
  uint32_t arrived(int peer, uint32_t counter) const override;
  void wait(int peer, uint32_t counter, uint32_t value, const Waiting&) override;
  void wait_until(const int* peers, size_t n, const Waiting&,
                  const std::function<bool()>& done) override;
  void give_up(uint32_t group, const Error&) override;
  bool failed(uint32_t group) const override;
  int lost(std::string* why = nullptr) const override;

  Duration timeout() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace eager::comm
