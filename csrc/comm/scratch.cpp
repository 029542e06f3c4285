#include "scratch.h"

#include <algorithm>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

size_t rounded(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// The largest power of two of bytes, from `least` to `most`, that keeps `count` of them in `room`.
size_t share(size_t room, size_t count, size_t least, size_t most) {
  size_t bytes = most;
  while (bytes > least && bytes * count > room) bytes /= 2;
  return bytes;
}

constexpr uint32_t kMagic = 0x6d6f6365;

}  // namespace

Layout::Layout(int members) {
  const size_t slots = size_t(members) * kChunks;
  inline_bytes = members <= 8 ? 8192 : 0;
  chunk = share(size_t(16) << 20, slots, 16 << 10, 256 << 10);
  message = share(size_t(4) << 20, slots, 4 << 10, 64 << 10);
  opening = 0;
  detail = opening + 2 * (kHeader + kKeys + inline_bytes);
  reply = detail + 2 * kHeader;
  stream = rounded(reply + 2 * kHeader + sizeof(Key));
  messages = stream + kChunks * chunk;
  stride = rounded(messages + kChunks * message);
  total = size_t(members) * stride;
}

Channels::Channels(Fabric& fabric, std::vector<int> ranks, int me, uint32_t first_counter)
    : fabric_(fabric),
      layout_(int(ranks.size())),
      me_(me),
      first_counter_(first_counter),
      scratch_(nullptr),
      peers_(ranks.size()) {
  for (size_t p = 0; p < ranks.size(); ++p) {
    peers_[p].rank = ranks[p];
    // Read before introductions are exchanged: see join().
    if (int(p) != me) peers_[p].seen[kHello] = fabric.arrived(ranks[p], first_counter + kHello);
  }
  if (ranks.size() > 1) scratch_ = &fabric.allocate(layout_.total);
}

Channels::~Channels() {
  if (scratch_) fabric_.release(*scratch_);
}

std::string Channels::introduce() {
  const uint32_t head[2] = {kMagic, uint32_t(peers_.size())};
  std::string text(reinterpret_cast<const char*>(head), sizeof head);
  for (int p = 0; p < size(); ++p) {
    Key key{};
    if (p != me_) key = fabric_.key(*scratch_, rank(p));
    text.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  return text;
}

// Counters keep their values when a group goes and another one takes its id, and the last signals
// of the old one may still be under way.  Once the introductions are there, every member has
// finished with the old group; signals stay in order, so a hello from a peer comes after all of
// them.  The counters are read then, before a second hello allows the peer to use them.
void Channels::join(const std::vector<std::string>& introductions, const Waiting& waiting) {
  const size_t expected = 8 + peers_.size() * sizeof(Key);
  const uint32_t head[2] = {kMagic, uint32_t(peers_.size())};
  if (introductions.size() != peers_.size()) {
    fail(ErrorKind::invalid, "Group", "exchange gave the wrong number of introductions",
         std::to_string(peers_.size()), std::to_string(introductions.size()));
  }
  mapped_ = true;
  for (int p = 0; p < size(); ++p) {
    if (p == me_) continue;
    const std::string& text = introductions[size_t(p)];
    if (text.size() != expected || std::memcmp(text.data(), head, sizeof head) != 0) {
      fail(ErrorKind::protocol, "Group",
           "the introduction of rank " + std::to_string(rank(p)) + " is not one",
           std::to_string(expected) + " bytes for a group of " + std::to_string(size()),
           std::to_string(text.size()) + " bytes", "the same ranks on all members");
    }
    Key key;
    std::memcpy(key.data(), text.data() + 8 + size_t(me_) * sizeof(Key), sizeof(Key));
    Peer& peer = peers_[size_t(p)];
    peer.scratch = fabric_.import(peer.rank, key);
    if (peer.scratch.length < layout_.total) {
      fail(ErrorKind::protocol, "Group", "rank " + std::to_string(peer.rank) + " has less scratch",
           std::to_string(layout_.total) + " bytes", std::to_string(peer.scratch.length));
    }
    mapped_ = mapped_ && peer.scratch.mapped;
  }
  for (int round = 0; round < 2; ++round) {
    for (int p = 0; p < size(); ++p) {
      if (p != me_) signal(p, kHello);
    }
    for (int p = 0; p < size(); ++p) {
      if (p != me_) await(p, kHello, waiting);
    }
    for (int p = 0; round == 0 && p < size(); ++p) {
      if (p == me_) continue;
      Peer& peer = peers_[size_t(p)];
      for (uint32_t slot = kHello + 1; slot < 16; ++slot) {
        peer.seen[slot] = fabric_.arrived(peer.rank, first_counter_ + slot);
      }
      peer.stream.need = peer.seen[kCredit] - Layout::kChunks + 1;
      peer.messages.need = peer.seen[kMessageDone] - Layout::kChunks + 1;
    }
  }
}

void Channels::await(int member, Slot slot, const Waiting& waiting) {
  Peer& peer = peers_[size_t(member)];
  const uint32_t next = peer.seen[slot].load(std::memory_order_relaxed) + 1;
  fabric_.wait(peer.rank, first_counter_ + slot, next, waiting);
  peer.seen[slot].store(next, std::memory_order_relaxed);
}

bool Channels::here(int member, Slot slot) const {
  const Peer& peer = peers_[size_t(member)];
  const uint32_t seen = peer.seen[slot].load(std::memory_order_relaxed);
  return int32_t(fabric_.arrived(peer.rank, first_counter_ + slot) - seen) > 0;
}

void Channels::signal(int member, Slot slot) {
  fabric_.signal(peers_[size_t(member)].rank, first_counter_ + slot);
}

uint64_t Channels::put(int member, size_t offset, const Piece* pieces, int n, Slot slot) {
  const Peer& peer = peers_[size_t(member)];
  return fabric_.put(peer.scratch, there_at(offset), pieces, n, first_counter_ + slot);
}

uint64_t Channels::put(const Target& target, size_t offset, const void* data, size_t bytes,
                       Slot slot) {
  const Piece piece{data, bytes};
  return fabric_.put(target, offset, &piece, 1, first_counter_ + slot);
}

void Channels::sent(int member, uint64_t ticket, const Waiting& waiting) {
  fabric_.sent(rank(member), ticket, waiting);
}

void Channels::settle(const Waiting& waiting) {
  for (Peer& peer : peers_) {
    if (!peer.unsettled) continue;
    peer.unsettled = false;
    fabric_.sent(peer.rank, peer.ticket, waiting);
  }
}

std::byte* Channels::here_at(int sender, size_t offset) const {
  return scratch_->base + size_t(sender) * layout_.stride + offset;
}

size_t Channels::next(int to, Stream& stream, Slot credit, size_t base, size_t chunk,
                      const Waiting& waiting) {
  fabric_.wait(peers_[size_t(to)].rank, first_counter_ + credit, stream.need, waiting);
  ++stream.need;
  return base + (stream.out++ % Layout::kChunks) * chunk;
}

void Channels::send(int to, const void* data, size_t bytes, const Waiting& waiting) {
  Peer& peer = peers_[size_t(to)];
  const Piece piece{data, bytes};
  const size_t at = next(to, peer.stream, kCredit, layout_.stream, layout_.chunk, waiting);
  note(to, put(to, at, &piece, 1, kData));
}

std::byte* Channels::reserve(int to, const Waiting& waiting) {
  Peer& peer = peers_[size_t(to)];
  const size_t at = next(to, peer.stream, kCredit, layout_.stream, layout_.chunk, waiting);
  return peer.scratch.mapped + there_at(at);
}

const std::byte* Channels::receive(int from, const Waiting& waiting) {
  await(from, kData, waiting);
  Stream& stream = peers_[size_t(from)].stream;
  return here_at(from, layout_.stream + (stream.in++ % Layout::kChunks) * layout_.chunk);
}

void Channels::release(int from) { signal(from, kCredit); }

uint64_t Channels::send_message(int to, const Piece* pieces, int n, const Waiting& waiting) {
  Peer& peer = peers_[size_t(to)];
  const size_t at =
      next(to, peer.messages, kMessageDone, layout_.messages, layout_.message, waiting);
  return put(to, at, pieces, n, kMessage);
}

bool Channels::room(int to) const {
  const Peer& peer = peers_[size_t(to)];
  return int32_t(fabric_.arrived(peer.rank, first_counter_ + kMessageDone) - peer.messages.need) >=
         0;
}

const std::byte* Channels::message(int from) {
  Stream& stream = peers_[size_t(from)].messages;
  return here_at(from, layout_.messages + (stream.in++ % Layout::kChunks) * layout_.message);
}

void Channels::release_message(int from) { signal(from, kMessageDone); }

}  // namespace eager::comm
