// Messages between two members, matched by tag.
#pragma once
#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <vector>

#include "core.h"

namespace eager::comm {

// A sender puts a header and the beginning of the message into the receiver's message stream and
// waits for the answer: accepted (and where the rest may land, if the destination is in a region),
// or refused as too long.  A message that nobody has asked for yet, but stands before one that
// somebody asks for, is taken in and kept.  So is everything that has come when a wait takes long:
// two ranks may send to each other before either receives.
class Messages {
 public:
  explicit Messages(Core& core);

  void check_peer(const char* op, int peer) const;
  void send(const void* data, size_t bytes, int to, uint32_t tag, bool patient);
  size_t receive(void* data, size_t bytes, int source, uint32_t tag, int* from, bool patient);

 private:
  struct Header {
    uint64_t bytes;
    uint32_t tag, magic;
  };
  struct Reply {
    uint64_t offset;
    uint32_t magic;
    uint8_t accepted, has_key;
    uint8_t unused[2];
  };
  struct Kept {
    int from;
    uint32_t tag;
    std::vector<std::byte> data;
  };
  // A message that is being taken in, chunk by chunk: nobody blocks for one that was not asked for,
  // because its sender may be doing the same with one of this rank's.
  struct Partial {
    Kept message;
    size_t done = 0;  // bytes; 0 to message.data.size()
    bool active = false;
  };
  struct Wanted {
    void* data;
    size_t bytes;
    int source;
    uint32_t tag;
  };
  void keep_if_whole(Partial&);
  void take_chunk(int from, const Waiting&);
  bool take_kept(const Wanted&, size_t* length, int* from);
  bool take_next(int from, const Wanted* wanted, size_t* length, const Waiting&);
  void answer(int to, bool accepted, const void* landing, size_t bytes, const Waiting&);
  void take_in(const Waiting&);
  bool any_message() const;
  void wait_for(int peer, Clock::time_point since, const Waiting&,
                const std::function<bool()>& ready);

  Core& core_;
  std::mutex sending_, receiving_;
  std::list<Kept> kept_;
  std::atomic<uint64_t> keeps_{0};  // how many messages were ever kept
  std::vector<int> others_;         // ranks of all other members
  std::vector<Partial> partial_;    // per member
  struct Outgoing {
    Header header;
    Reply reply;
    Key key;
  };
  std::vector<Outgoing> outgoing_;  // per member, as transports read it until sent()
};

}  // namespace eager::comm
