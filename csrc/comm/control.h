// The control connection between two ranks of a mesh: frames, and descriptors where it is a Unix
// socket.  Both ends are authenticated before one is made (auth.h).
#pragma once
#include <atomic>
#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "frame.h"
#include "socket.h"

namespace eager::comm {

enum class Message : uint8_t {
  hello = 1,  // who I am, what I can: bootstrap.cpp
  offer,      // of the transport that both chose
  ready,      // my end of the link is made
  region,     // memory of mine, with its descriptor
  withdraw,   // it is released
  heartbeat,  // I live, and wait for these ranks: liveness.h
  ask,        // send a heartbeat now
  failed,     // I gave up an operation, and who is to blame
  goodbye,    // I leave; the end of the connection is no death
};

struct Incoming {
  Message type;
  std::string payload;
  Fd fd;  // of `region`
};

// Thread-safe; nothing blocks.
class Control {
 public:
  // `local`: a Unix socket.
  Control(Socket socket, bool local);

  // Queues a frame and sends what the socket takes of the queue.  True when nothing is left;
  // else flush() when the socket can be written.  A descriptor is duplicated.  Errors of the
  // socket show in receive().
  bool send(Message, const std::string& payload = "", int fd = -1);
  bool flush();
  // The next frame, or none yet.  Throws Error(peer_lost) at the end of the connection and
  // Error(protocol) for what no correct peer sends.  One thread at a time.
  std::optional<Incoming> receive();
  // Ends the connection; the descriptor stays open until the object goes.
  void close();

  int fd() const { return socket_.fd(); }
  bool local() const { return local_; }

 private:
  struct Outgoing {
    std::string bytes;
    size_t sent = 0;
    Fd fd;
  };
  bool fill();

  Socket socket_;
  const bool local_;
  std::mutex mutex_;  // of the queue
  std::deque<Outgoing> queue_;
  size_t queued_ = 0;  // bytes
  bool broken_ = false;

  FrameParser parser_;
  std::deque<Fd> descriptors_;
  char buffer_[16384];
  size_t begin_ = 0, end_ = 0;  // bytes of buffer_ that the parser has not seen
};

}  // namespace eager::comm
