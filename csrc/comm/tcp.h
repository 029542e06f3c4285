// The transport that always works: a few TCP connections per pair of ranks.
//
// Bytes of a put are read straight into the region they are for (tcp_receive.h) and sent straight
// from the caller's memory (tcp_send.h); the copies in between are the kernel's.  Towards another
// host large puts are sent with MSG_ZEROCOPY where the kernel offers that.
//
// Every connection authenticates both ends (auth.h) before a byte of it is believed, and every
// header is checked before a byte behind it is placed.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "link.h"
#include "socket.h"
#include "tcp_receive.h"
#include "tcp_send.h"

namespace eager::comm {

inline constexpr int kTcpSockets = 16;  // per pair, at most

enum class ZeroCopy {
  automatic,  // where the kernel offers it and the peer is on another host
  always,     // wherever the kernel offers it
  never,
};

struct TcpTuning {
  ZeroCopy zero_copy = ZeroCopy::automatic;
  size_t queue_bytes = size_t(64) << 20;  // a put that finds more than this queued waits
};

class TcpLink final : public Link {
 public:
  // Connected and authenticated sockets, in one order on both sides.
  TcpLink(const LinkOptions&, const TcpTuning&, std::vector<Socket>);
  ~TcpLink() override;  // sends what is queued, for a second at most

  const char* name() const override { return "tcp"; }
  void attach(const Registered&) override;
  void detach(const Registered&) override;
  // Throws Error(invalid) for GPU memory: sockets cannot read into it.
  Key key(const Registered&) override;
  Target import(const Key&) override;
  // Throws also Error(timeout) when the queue stays full for LinkOptions::timeout.
  uint64_t put(const Target&, size_t offset, const Piece* pieces, int n, uint32_t counter) override;
  bool is_sent(uint64_t ticket) override { return sender_.is_sent(ticket); }
  void progress() override;
  std::vector<int> descriptors() const override { return {epoll_.get()}; }
  void abandon() override;

  // Sent without a copy so far.
  uint64_t zero_copy_bytes() const { return sender_.zero_copy_bytes(); }

 private:
  void receive();
  bool receive_some(int stream);
  void watch();
  void end(int stream, int number);
  [[noreturn]] void lost(const std::string& why) const;

  const LinkOptions options_;
  std::vector<Socket> sockets_;
  Fd epoll_;  // readable when progress() has something to do
  std::mutex watch_mutex_;
  std::vector<uint32_t> watched_;          // epoll events of each socket
  std::vector<std::atomic<bool>> unread_;  // sockets not to be read now: ended, or too far ahead
  std::atomic<bool> abandoned_{false};

  std::mutex receive_mutex_;  // guards what follows
  TcpReceiver receiver_;
  std::vector<bool> ended_;
  std::string broken_;    // why nothing more can come
  bool refused_ = false;  // the peer broke the protocol

  TcpSender sender_;
};

// The lower rank of a pair listens on options.address; the higher connects to it.
// Throws Error(system) when it cannot listen, Error(invalid) for options that make no sense.
std::unique_ptr<PendingLink> prepare_tcp(const LinkOptions&, const TcpTuning& = {});

}  // namespace eager::comm
