// Where what peers send lands: for every ordered pair of members two mailboxes for opening rounds
// (agree.h), a stream of chunks, and a stream of messages; and who may write them when.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "fabric.h"

namespace eager::comm {

// A group's counters, counted from the group's first one.
enum Slot : uint32_t {
  kHello,        // construction
  kOpen,         // opening rounds
  kDetail,       // second rounds: what differed, what can be mapped
  kData,         // chunks of the stream,
  kCredit,       // and chunks that their reader is done with
  kLanded,       // puts straight into a user's memory
  kDone,         // "I no longer touch your memory"
  kMessage,      // point-to-point: chunks,
  kMessageDone,  // chunks read,
  kReply,        // and answers of receivers
  kPlanReady,    // plans: puts of start(),
  kPlanStep,     // and of finish()
};

// The layout of one rank's scratch, in bytes; the same on all ranks of a group.
struct Layout {
  explicit Layout(int members);
  static constexpr size_t kHeader = 64;  // a descriptor
  static constexpr size_t kKeys = 2 * sizeof(Key);
  static constexpr uint32_t kChunks = 4;  // in flight per ordered pair
  size_t inline_bytes;                    // payload that travels with a descriptor
  size_t chunk;                           // of the stream
  size_t message;                         // of point-to-point
  size_t opening, detail, reply, stream, messages, stride;  // where they start, and the whole
  size_t total;
};

// One member's ends of all streams.  Chunks between two members arrive in order.
//
// Flow control: chunk number k is written to slot k % kChunks once the reader has signalled that
// it is done with chunk k - kChunks, so no slot is written while it is read.  Protocols above must
// read what was sent to them; all of them finish a collective with every chunk read.
class Channels {
 public:
  // `ranks`: the members' ranks in the fabric; `me`: index of this one.
  Channels(Fabric&, std::vector<int> ranks, int me, uint32_t first_counter);
  ~Channels();
  Channels(const Channels&) = delete;
  Channels& operator=(const Channels&) = delete;

  // What the other members must know, then what they told.  join() also waits until all have come.
  std::string introduce();
  void join(const std::vector<std::string>& introductions, const Waiting&);

  Fabric& fabric() const { return fabric_; }
  const Layout& layout() const { return layout_; }
  int size() const { return int(peers_.size()); }
  int me() const { return me_; }
  int rank(int member) const { return peers_[size_t(member)].rank; }
  // True if this rank can load and store every member's scratch.
  bool mapped() const { return mapped_; }
  void set_unmapped() { mapped_ = false; }  // some other member cannot

  // Waits for one more arrival from a member.
  void await(int member, Slot, const Waiting&);
  // True if await() would return at once.
  bool here(int member, Slot) const;
  void signal(int member, Slot);
  // Into a member's scratch; or straight into its registered memory.  Both return a ticket.
  uint64_t put(int member, size_t offset, const Piece*, int n, Slot);
  uint64_t put(const Target&, size_t offset, const void* data, size_t bytes, Slot);
  // Waits until the source of a put may be changed.
  void sent(int member, uint64_t ticket, const Waiting&);
  // Notes a ticket; settle() waits for all of those noted.  For the running collective only.
  void note(int member, uint64_t ticket) {
    peers_[size_t(member)].ticket = ticket;
    peers_[size_t(member)].unsettled = true;
  }
  void settle(const Waiting&);

  // Where a member's puts to (offset from its own block) land here, and where this rank's land
  // there.
  std::byte* here_at(int sender, size_t offset) const;
  size_t there_at(size_t offset) const { return size_t(me_) * layout_.stride + offset; }

  // The stream of collectives.  At most `layout().chunk` bytes per chunk.  send() notes its ticket.
  void send(int to, const void* data, size_t bytes, const Waiting&);
  const std::byte* receive(int from, const Waiting&);
  void release(int from);  // done with the oldest chunk received and not yet released
  // Only when mapped(): where the next chunk is to be written, then that it is.
  std::byte* reserve(int to, const Waiting&);
  void commit(int to) { signal(to, kData); }

  // The stream of messages, for one sending and one receiving thread at a time.
  uint64_t send_message(int to, const Piece*, int n, const Waiting&);
  bool room(int to) const;             // send_message() would not wait for its receiver
  const std::byte* message(int from);  // the chunk that await(from, kMessage) waited for
  void release_message(int from);

 private:
  struct Stream {
    uint32_t out = 0, in = 0;  // chunks sent and received so far
    uint32_t need = 0;         // value of the credit counter that allows the next one
  };
  struct Peer {
    int rank = -1;
    Target scratch;
    // Values of the counters up to which arrivals have been awaited.  Each has one waiting thread
    // at a time; others may look whether something is here.
    std::atomic<uint32_t> seen[16] = {};
    Stream stream, messages;
    uint64_t ticket = 0;
    bool unsettled = false;
  };
  size_t next(int to, Stream&, Slot credit, size_t base, size_t chunk, const Waiting&);

  Fabric& fabric_;
  const Layout layout_;
  const int me_;
  const uint32_t first_counter_;
  const Region* scratch_;
  std::vector<Peer> peers_;
  bool mapped_ = false;
};

}  // namespace eager::comm
