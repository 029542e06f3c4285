#include "point_to_point.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace eager::comm {
namespace {

constexpr uint32_t kMagic = 0x6567736d;
// After so long a wait, messages nobody asked for yet are taken in: their senders may be what this
// rank's peer waits for.
constexpr Duration kImpatience = std::chrono::milliseconds(5);
constexpr Duration kPause = std::chrono::microseconds(50);

}  // namespace

Messages::Messages(Core& core) : core_(core), partial_(size_t(core.n)), outgoing_(size_t(core.n)) {
  for (int p = 0; p < core.n; ++p) {
    if (p != core.me) others_.push_back(core.channels.rank(p));
  }
}

void Messages::check_peer(const char* op, int peer) const {
  if (peer >= 0 && peer < core_.n && peer != core_.me) return;
  fail(ErrorKind::invalid, op, "there is no such peer in the group",
       "0 to " + std::to_string(core_.n - 1) + ", but not this rank, " + std::to_string(core_.me),
       std::to_string(peer));
}

bool Messages::any_message() const {
  for (int p = 0; p < core_.n; ++p) {
    if (p != core_.me && core_.channels.here(p, kMessage)) return true;
  }
  return false;
}

// Waits until ready(), or until there are messages to take in.  peer -1: any.
void Messages::wait_for(int peer, Clock::time_point since, const Waiting& waiting,
                        const std::function<bool()>& ready) {
  bool impatient = false;
  const auto news = [&] {
    if (ready()) return true;
    return impatient = Clock::now() - since >= kImpatience && any_message();
  };
  const int rank = peer < 0 ? -1 : core_.channels.rank(peer);
  if (peer < 0) {
    core_.fabric.wait_until(others_.data(), others_.size(), waiting, news);
  } else {
    core_.fabric.wait_until(&rank, 1, waiting, news);
  }
  if (impatient) take_in(waiting);
}

void Messages::send(const void* data, size_t bytes, int to, uint32_t tag, bool patient) {
  const Waiting waiting = core_.waiting("send", patient);
  const std::lock_guard lock(sending_);
  Channels& channels = core_.channels;
  const size_t slot = channels.layout().message;
  Outgoing& out = outgoing_[size_t(to)];
  out.header = {bytes, tag, kMagic};
  const size_t first = std::min(bytes, slot - sizeof(Header));
  const Piece pieces[2] = {{&out.header, sizeof(Header)}, {data, first}};
  uint64_t ticket = channels.send_message(to, pieces, first ? 2 : 1, waiting);
  const Clock::time_point since = Clock::now();
  const auto replied = [&] { return channels.here(to, kReply); };
  while (!replied()) wait_for(to, since, waiting, replied);
  channels.await(to, kReply, waiting);
  const std::byte* at = channels.here_at(to, channels.layout().reply);
  Reply reply;
  std::memcpy(&reply, at, sizeof reply);
  if (reply.magic != kMagic) {
    fail(ErrorKind::protocol, "send",
         "rank " + std::to_string(channels.rank(to)) + " sent an answer that is not one");
  }
  if (!reply.accepted) {
    fail(ErrorKind::mismatch, "send",
         "the message is longer than rank " + std::to_string(channels.rank(to)) + " expects",
         "at most " + std::to_string(reply.offset) + " bytes", std::to_string(bytes) + " bytes");
  }
  const auto* source = static_cast<const std::byte*>(data);
  if (first < bytes && reply.has_key) {
    Key key;
    std::memcpy(key.data(), at + sizeof reply, sizeof key);
    const Target target = core_.fabric.import(channels.rank(to), key);
    ticket = channels.put(target, reply.offset + first, source + first, bytes - first, kMessage);
  } else {
    for (size_t done = first; done < bytes; done += std::min(slot, bytes - done)) {
      // The receiver may be streaming to this rank as well: see pause().
      const Clock::time_point full = Clock::now();
      const auto room = [&] { return channels.room(to); };
      while (!room()) wait_for(to, full, waiting, room);
      const Piece piece{source + done, std::min(slot, bytes - done)};
      ticket = channels.send_message(to, &piece, 1, waiting);
    }
  }
  channels.sent(to, ticket, waiting);
}

size_t Messages::receive(void* data, size_t bytes, int source, uint32_t tag, int* from,
                         bool patient) {
  const Waiting waiting = core_.waiting("recv", patient);
  const Wanted wanted{data, bytes, source, tag};
  const Clock::time_point since = Clock::now();
  for (;;) {
    uint64_t kept = 0;
    {
      const std::lock_guard lock(receiving_);
      kept = keeps_.load(std::memory_order_relaxed);
      size_t length = 0;
      int sender = -1;
      if (take_kept(wanted, &length, &sender)) {
        if (from) *from = sender;
        return length;
      }
      for (int p = 0; p < core_.n; ++p) {
        if (p == core_.me || (source >= 0 && p != source)) continue;
        while (core_.channels.here(p, kMessage)) {
          sender = p;
          if (!take_next(p, &wanted, &length, waiting) && !take_kept(wanted, &length, &sender)) {
            continue;
          }
          if (from) *from = sender;
          return length;
        }
      }
    }
    wait_for(source, since, waiting, [&] {
      if (keeps_.load(std::memory_order_relaxed) != kept) return true;  // by another thread
      return source < 0 ? any_message() : core_.channels.here(source, kMessage);
    });
  }
}

void Messages::take_in(const Waiting& waiting) {
  const std::unique_lock lock(receiving_, std::try_to_lock);
  if (!lock) return std::this_thread::sleep_for(kPause);  // another thread receives, and takes in
  for (int p = 0; p < core_.n; ++p) {
    while (p != core_.me && core_.channels.here(p, kMessage)) {
      take_next(p, nullptr, nullptr, waiting);
    }
  }
}

bool Messages::take_kept(const Wanted& wanted, size_t* length, int* from) {
  for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
    if (kept->tag != wanted.tag || (wanted.source >= 0 && kept->from != wanted.source)) continue;
    const Kept message = std::move(*kept);
    kept_.erase(kept);
    *length = message.data.size();
    *from = message.from;
    if (message.data.size() > wanted.bytes) {
      fail(ErrorKind::mismatch, "recv",
           "the message of rank " + std::to_string(core_.channels.rank(message.from)) +
               " is longer than expected",
           "at most " + std::to_string(wanted.bytes) + " bytes",
           std::to_string(message.data.size()) + " bytes");
    }
    if (!message.data.empty()) std::memcpy(wanted.data, message.data.data(), message.data.size());
    core_.count_staged(message.data.size());
    return true;
  }
  return false;
}

// Takes the next message of a member: to where it is wanted, if it is, else it is kept.  True if it
// was wanted.
bool Messages::take_next(int from, const Wanted* wanted, size_t* length, const Waiting& waiting) {
  if (partial_[size_t(from)].active) {
    take_chunk(from, waiting);
    return false;
  }
  Channels& channels = core_.channels;
  const size_t slot = channels.layout().message;
  channels.await(from, kMessage, waiting);
  const std::byte* chunk = channels.message(from);
  Header header;
  std::memcpy(&header, chunk, sizeof header);
  if (header.magic != kMagic || header.bytes > SIZE_MAX / 2) {
    fail(ErrorKind::protocol, "recv",
         "rank " + std::to_string(channels.rank(from)) + " sent a message that is not one");
  }
  const size_t bytes = size_t(header.bytes), first = std::min(bytes, slot - sizeof header);
  const bool matches = wanted && header.tag == wanted->tag;
  if (matches && bytes > wanted->bytes) {
    channels.release_message(from);
    answer(from, false, nullptr, wanted->bytes, waiting);
    fail(ErrorKind::mismatch, "recv",
         "the message of rank " + std::to_string(channels.rank(from)) + " is longer than expected",
         "at most " + std::to_string(wanted->bytes) + " bytes", std::to_string(bytes) + " bytes");
  }
  if (!matches) {
    Partial& partial = partial_[size_t(from)];
    partial.message = {from, header.tag, std::vector<std::byte>(bytes)};
    partial.done = first;
    partial.active = true;
    if (first) std::memcpy(partial.message.data.data(), chunk + sizeof header, first);
    channels.release_message(from);
    core_.count_staged(first);
    answer(from, true, nullptr, bytes, waiting);
    keep_if_whole(partial);
    return false;
  }
  auto* to = static_cast<std::byte*>(wanted->data);
  if (first) std::memcpy(to, chunk + sizeof header, first);
  channels.release_message(from);
  const bool rest = first < bytes;
  const Region* region = rest ? core_.fabric.find(to, bytes) : nullptr;
  answer(from, true, region ? to : nullptr, bytes, waiting);
  size_t staged = first;
  if (rest && region) {
    channels.await(from, kMessage, waiting);
  } else {
    for (size_t done = first; done < bytes; done += std::min(slot, bytes - done)) {
      channels.await(from, kMessage, waiting);
      std::memcpy(to + done, channels.message(from), std::min(slot, bytes - done));
      channels.release_message(from);
    }
    staged = bytes;
  }
  core_.count_staged(staged);
  *length = bytes;
  return true;
}

// The next chunk of the message that is being taken in.
void Messages::take_chunk(int from, const Waiting& waiting) {
  Channels& channels = core_.channels;
  Partial& partial = partial_[size_t(from)];
  const size_t left = partial.message.data.size() - partial.done;
  const size_t size = std::min(channels.layout().message, left);
  channels.await(from, kMessage, waiting);
  std::memcpy(partial.message.data.data() + partial.done, channels.message(from), size);
  channels.release_message(from);
  core_.count_staged(size);
  partial.done += size;
  keep_if_whole(partial);
}

void Messages::keep_if_whole(Partial& partial) {
  if (partial.done < partial.message.data.size()) return;
  partial.active = false;
  kept_.push_back(std::move(partial.message));
  keeps_.fetch_add(1, std::memory_order_relaxed);
}

// A member has one message without an answer at a time, so its reply box is free.
void Messages::answer(int to, bool accepted, const void* landing, size_t bytes,
                      const Waiting& waiting) {
  Outgoing& out = outgoing_[size_t(to)];
  out.reply = {bytes, kMagic, accepted, 0, {}};
  int n = 1;
  if (landing) {
    const Region* region = core_.fabric.find(landing, bytes);
    out.reply.offset = size_t(static_cast<const std::byte*>(landing) - region->base);
    out.reply.has_key = 1;
    out.key = core_.fabric.key(*region, core_.channels.rank(to));
    n = 2;
  }
  const Piece pieces[2] = {{&out.reply, sizeof out.reply}, {&out.key, sizeof out.key}};
  Channels& channels = core_.channels;
  channels.sent(to, channels.put(to, channels.layout().reply, pieces, n, kReply), waiting);
}

}  // namespace eager::comm
