// The sending half of a TCP link: puts are queued by reference and leave as fast as the sockets
// take them.
//
// A put is cut into pieces (see tcp_receive.h).  Each socket takes the next piece when it has
// finished its last one, so a socket that is held up by a lost packet holds up one piece and no
// more, and every socket carries its pieces in the order of their puts.
#pragma once
#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "fabric.h"
#include "tcp_receive.h"

namespace eager::comm {

inline constexpr size_t kTcpPiece = size_t(256) << 10;  // a put is cut into pieces no smaller
inline constexpr size_t kTcpQueuedPuts = 4096;          // more than these have to wait

class TcpSender {
 public:
  // The sockets are connected, non-blocking and stay the caller's.  `zero_copy`: send pieces with
  // MSG_ZEROCOPY (the sockets have SO_ZEROCOPY) for as long as the kernel can do without a copy.
  // `queue_bytes`: a put that finds more than this queued has to wait.
  TcpSender(std::vector<int> sockets, int peer, bool zero_copy, size_t queue_bytes);

  // Queues a put and sends what the sockets take at once.  Returns its ticket, or 0 when the queue
  // is full.  Throws Error(peer_lost).
  uint64_t put(uint32_t region, uint64_t offset, uint32_t counter, const Piece* pieces, int n);
  // Sends what the sockets take, some megabytes at most.  Never blocks; returns at once when
  // another thread is at it.  Throws Error(peer_lost).
  void pump();
  // Forgets what is queued: no memory of a put is looked at afterwards.  Later puts throw.
  void stop();

  // The memory of all puts up to the ticket may be changed.
  bool is_sent(uint64_t ticket) const { return sent_.load(std::memory_order_acquire) >= ticket; }
  bool pending() const { return pending_.load(std::memory_order_acquire); }
  // The socket took less than it was given: pump() again when it is writable.
  bool blocked(int stream) const { return streams_[size_t(stream)].blocked.load(); }
  // Sent without a copy so far (for tests and figures).
  uint64_t zero_copy_bytes() const { return zero_copy_bytes_.load(std::memory_order_relaxed); }

 private:
  // A place in the memory of a put.
  struct Cursor {
    size_t piece = 0, offset = 0;
  };
  struct Put {
    std::vector<Piece> pieces;
    TcpHeader header{};  // of its first piece
    size_t length = 0, cut = 0, cut_length = 0;
    Cursor cursor;            // where the next cut begins
    uint32_t unfinished = 0;  // cuts whose memory is still needed
  };
  // Calls with MSG_ZEROCOPY that carried one cut; the kernel numbers them per socket.
  struct Flight {
    uint32_t first = 0, calls = 0, completed = 0;
    uint64_t sequence = 0;
    bool open = true;  // there may be more calls
  };
  struct Stream {
    int fd = -1;
    bool zero_copy = false;
    bool busy = false;  // has a cut
    std::atomic<bool> blocked{false};
    TcpHeader header{};
    size_t header_left = 0, left = 0;
    Cursor cursor;
    uint32_t calls = 0;  // with MSG_ZEROCOPY so far
    std::deque<Flight> flights;
  };

  void send_all();
  bool send_some(Stream&, size_t& sent);
  bool next_cut(Stream&);
  int gather(const Stream&, const Put&, iovec* to, int room) const;
  void completions(Stream&);
  void land(Stream&);
  void finish(uint64_t sequence);
  [[noreturn]] void broke(const std::string& why) const;
  Put& find(uint64_t sequence) { return puts_[sequence - puts_.front().header.sequence]; }
  static void advance(const Put&, Cursor&, size_t bytes);

  const int peer_;
  const size_t queue_bytes_;
  std::mutex mutex_;  // guards all below that is not atomic
  std::vector<Stream> streams_;
  std::deque<Put> puts_;  // whose memory is still needed, oldest first
  size_t uncut_ = 0;      // index of the first that is not wholly given to streams
  size_t queued_ = 0;     // bytes of all of them
  uint64_t sequence_ = 0;
  bool stopped_ = false;
  std::atomic<uint64_t> sent_{0}, zero_copy_bytes_{0};
  std::atomic<bool> pending_{false};
};

}  // namespace eager::comm
