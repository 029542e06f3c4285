// The protocol, on top of queue pairs ("rails", verbs_queue.h):
//
// - Rail 0 carries small puts and all signals.  An immediate there is a counter slot in the low
//   12 bits, and above it the number of striped puts so far.
// - A large put is striped: every rail gets a share, and on rails 1.. its last write has an
//   immediate, the number of this striped put.
// - A queue pair keeps its own writes in order, different ones do not.  So the receiver holds a
//   signal back until every rail 1.. has delivered as many striped puts as the signal names.  The
//   sender never waits for that.
//
// Sources: memory of a region is sent from where it is.  Up to the device's inline limit the call
// copies it; up to a slot's size it is gathered in a ring of registered slots; larger memory is
// registered while it is sent (verbs_memory.h), and where the system refuses that, it goes through
// the slots as well.  GPU memory is sent from regions only: the CPU never reads it.
//
// A rail that breaks breaks the link: what it carried cannot be told from what it lost.
#include "verbs.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <thread>

#include "memory.h"
#include "verbs_api.h"
#include "verbs_device.h"
#include "verbs_memory.h"
#include "verbs_queue.h"

namespace eager::comm {

using namespace verbs;

namespace {

constexpr uint32_t kKeyMagic = 0x31524256;  // "VBR1"
constexpr char kOfferMagic[8] = {'E', 'A', 'G', 'R', 'V', 'B', 'S', '1'};
constexpr uint32_t kSlotBits = 12;
static_assert(kCounters == 1u << kSlotBits);

constexpr size_t kSlotBytes = 16 << 10;
constexpr uint32_t kSlots = 64;
constexpr size_t kStripeBytes = 128 << 10;  // a put this large is worth several rails
constexpr size_t kMessageBytes = 1 << 30;   // of one write, if the port allows as much
constexpr size_t kCountedBytes = 4 << 10;   // copies below are cheaper than any alternative
constexpr Duration kNap = std::chrono::microseconds(50);
constexpr Duration kDrain = std::chrono::seconds(2);  // of a link that is closed

struct Offer {
  char magic[8];
  uint32_t rails;
  uint32_t reserved;
  RailOffer rail[kMaxRails];
};
static_assert(std::is_trivially_copyable_v<Offer> && sizeof(Offer) <= kMaxOffer);

struct WireKey {
  uint32_t magic;
  uint32_t region;
  uint64_t address;
  uint64_t length;
  uint32_t keys[kMaxRails];
  uint32_t reserved[6];  // zero
};
static_assert(sizeof(WireKey) == sizeof(Key));

// Which of our and of the peer's ports are joined: the n-th of each, of one link layer, of which
// there are most; InfiniBand if they are equal.  Both sides compute the same.
std::vector<std::pair<int, int>> pair_ports(const std::vector<bool>& ours,
                                            const std::vector<bool>& theirs) {
  std::vector<std::pair<int, int>> best;
  for (bool ethernet : {false, true}) {
    std::vector<int> a, b;
    for (size_t i = 0; i < ours.size(); i++)
      if (ours[i] == ethernet) a.push_back(int(i));
    for (size_t i = 0; i < theirs.size(); i++)
      if (theirs[i] == ethernet) b.push_back(int(i));
    std::vector<std::pair<int, int>> pairs;
    for (size_t i = 0; i < std::min(a.size(), b.size()); i++) pairs.emplace_back(a[i], b[i]);
    if (pairs.size() > best.size()) best = pairs;
  }
  return best;
}

// What a link and its pending form own.
struct Parts {
  std::shared_ptr<VerbsContext> context;
  Mapping memory;  // credit words, then the slots
  Pinned control, slots;
  std::vector<std::unique_ptr<Rail>> rails;  // before connect(): one per port
};

class VerbsLink final : public Link {
 public:
  VerbsLink(const LinkOptions& options, Parts parts)
      : options_(options), parts_(std::move(parts)), delivered_(parts_.rails.size()) {
    for (auto& rail : parts_.rails) devices_ |= 1u << rail->port().device;
    slots_ = parts_.memory.base() + page_size();
    slot_bytes_ = std::min(kSlotBytes, message(rail(0)));
  }

  ~VerbsLink() override {
    if (!abandoned_ && !broken_) drain();
    for (auto& rail : parts_.rails) rail->stop();
  }

  const char* name() const override { return "verbs"; }

  void attach(const Registered& region) override { memory().attach(region); }
  void detach(const Registered& region) override { memory().detach(region); }

  Key key(const Registered& region) override {
    WireKey wire{};
    wire.magic = kKeyMagic;
    wire.region = region.id;
    wire.address = reinterpret_cast<uint64_t>(region.base);
    wire.length = region.length;
    if (region.length > 0) {
      Pinned pinned = memory().find(region.base, region.length);
      if (!pinned) fail(ErrorKind::invalid, "verbs", "the region is not attached to this link");
      for (size_t i = 0; i < parts_.rails.size(); i++)
        wire.keys[i] = pinned->of[parts_.rails[i]->port().device]->rkey;
    }
    Key key;
    std::memcpy(key.data(), &wire, sizeof wire);
    return key;
  }

  Target import(const Key& key) override {
    WireKey wire;
    std::memcpy(&wire, key.data(), sizeof wire);
    bool rest = std::any_of(std::begin(wire.reserved), std::end(wire.reserved),
                            [](uint32_t word) { return word != 0; });
    if (wire.magic != kKeyMagic || rest || wire.address > UINT64_MAX - wire.length)
      fail(ErrorKind::protocol, "verbs", "the key of a region is not one that a peer can make");
    Target target;
    target.region = wire.region;
    target.length = size_t(wire.length);
    target.address = wire.address;
    std::copy(std::begin(wire.keys), std::end(wire.keys), target.keys.begin());
    return target;
  }

  uint64_t put(const Target&, size_t offset, const Piece* pieces, int n, uint32_t counter) override;
  bool is_sent(uint64_t ticket) override;
  void progress() override {
    std::unique_lock lock(polling_, std::try_to_lock);
    if (lock) poll();
  }
  std::vector<int> descriptors() const override {
    std::vector<int> all;
    for (auto& rail : parts_.rails) all.push_back(rail->descriptor());
    return all;
  }
  bool arm() override;
  void abandon() override {
    abandoned_ = true;
    for (auto& rail : parts_.rails) rail->stop();
  }

 private:
  struct Put {  // under way
    uint64_t ticket;
    std::array<uint64_t, kMaxRails> until{};  // numbers of writes, per rail
    std::vector<Pinned> sources;
  };
  struct Slot {
    uint64_t until = 0;  // free when rail 0 has completed so many writes
  };
  struct Job {  // what one put has yet to do
    uint64_t remote;
    const std::array<uint32_t, 4>& keys;
    uint32_t counter;
    Put put;
  };

  Memory& memory() { return parts_.context->memory(); }
  Rail& rail(size_t i) { return *parts_.rails[i]; }
  size_t message(const Rail& rail) const {
    return std::max<size_t>(1, std::min<size_t>(kMessageBytes, rail.max_message()));
  }

  void await(size_t rail, bool immediate);
  uint32_t immediate(uint32_t counter) const { return stripes_ << kSlotBits | counter; }
  void signal(uint32_t counter);
  void send_inline(Job&, const Piece* pieces, int n, size_t total);
  void send_slots(Job&, const Piece* pieces, int n, size_t total, bool last);
  void send_pieces(Job&, const Piece* pieces, int n, const std::vector<Pinned>& found);
  void send_from(Job&, Pinned, const std::byte* data, size_t length, bool last);
  void remember(Job&);
  void send_range(Job&, size_t rail, const Registration&, const std::byte* data, size_t length,
                  uint64_t remote, bool signaled, const uint32_t* immediate);
  bool poll();
  void deliver();
  void drain();
  void settle();

  const LinkOptions options_;
  Parts parts_;
  uint32_t devices_ = 0;  // bit mask of those that the rails are on
  std::atomic<bool> abandoned_{false}, broken_{false};

  std::mutex sending_;  // one put at a time; guards what follows
  uint32_t stripes_ = 0;
  std::byte* slots_;
  size_t slot_bytes_;  // used of each: a message must hold it
  std::array<Slot, kSlots> slot_;
  uint32_t next_slot_ = 0;

  std::mutex tickets_;  // guards what follows
  std::deque<Put> under_way_;
  uint64_t last_ticket_ = 0;
  std::atomic<uint64_t> sent_{0};

  std::mutex polling_;               // guards what follows
  std::deque<uint32_t> held_;        // immediates of rail 0, in order
  std::vector<uint32_t> delivered_;  // striped puts, per rail
};

// Waits for room on a rail; meanwhile handles what comes, so that two ranks that send to each
// other do not wait for ever.
void VerbsLink::await(size_t i, bool immediate) {
  auto deadline = Clock::now() + options_.timeout;
  for (int spins = 0;; spins++) {
    if (abandoned_)
      fail(ErrorKind::peer_lost, "put", "rank " + std::to_string(options_.peer) + " is lost", "",
           "", "", options_.peer);
    if (rail(i).room(immediate)) return;
    progress();
    if (spins < 1000) continue;
    if (Clock::now() > deadline)
      fail(ErrorKind::timeout, "put",
           "rank " + std::to_string(options_.peer) + " took nothing for as long as the time-out");
    std::this_thread::sleep_for(kNap);
  }
}

void VerbsLink::signal(uint32_t counter) {
  await(0, true);
  Write write{};
  write.immediate = true;
  write.value = immediate(counter);
  rail(0).post(write);
}

void VerbsLink::send_inline(Job& job, const Piece* pieces, int n, size_t total) {
  std::byte gathered[1024];
  size_t at = 0;
  for (int i = 0; i < n; i++) {
    if (pieces[i].length) std::memcpy(gathered + at, pieces[i].data, pieces[i].length);
    at += pieces[i].length;
  }
  bool tell = job.counter != kNoCounter;
  await(0, tell);
  Write write{gathered, uint32_t(total), 0, job.remote, job.keys[0]};
  write.inlined = true;
  write.immediate = tell;
  write.value = immediate(job.counter);
  rail(0).post(write);
}

// Through the ring of slots: the source is free when this returns.
void VerbsLink::send_slots(Job& job, const Piece* pieces, int n, size_t total, bool last) {
  if (total >= kCountedBytes && options_.stats)
    options_.stats->staged_bytes.fetch_add(total, std::memory_order_relaxed);
  int piece = 0;
  size_t taken = 0;  // of that piece
  uint32_t key = parts_.slots->of[rail(0).port().device]->lkey;
  while (total > 0) {
    bool tell = last && total <= slot_bytes_ && job.counter != kNoCounter;
    Slot& slot = slot_[next_slot_];
    std::byte* to = slots_ + next_slot_ * kSlotBytes;
    next_slot_ = (next_slot_ + 1) % kSlots;
    auto deadline = Clock::now() + options_.timeout;
    while (rail(0).completed() < slot.until) {
      await(0, false);
      progress();
      std::this_thread::yield();
      if (Clock::now() > deadline) fail(ErrorKind::timeout, "put", "the device sends nothing");
    }
    size_t filled = 0;
    while (filled < slot_bytes_ && piece < n) {
      size_t part = std::min(slot_bytes_ - filled, pieces[piece].length - taken);
      if (part > 0)
        std::memcpy(to + filled, static_cast<const std::byte*>(pieces[piece].data) + taken, part);
      filled += part;
      taken += part;
      if (taken == pieces[piece].length) {
        piece++;
        taken = 0;
      }
    }
    await(0, tell);
    Write write{to, uint32_t(filled), key, job.remote, job.keys[0]};
    write.immediate = tell;
    write.value = immediate(job.counter);
    slot.until = rail(0).post(write) + 1;
    job.remote += filled;
    total -= filled;
  }
}

// A contiguous share of a put over one rail, in as few writes as the port's messages allow.
void VerbsLink::send_range(Job& job, size_t i, const Registration& source, const std::byte* data,
                           size_t length, uint64_t remote, bool signaled,
                           const uint32_t* immediate) {
  uint32_t key = source.of[rail(i).port().device]->lkey;
  while (length > 0) {
    size_t part = std::min(length, message(rail(i)));
    bool end = part == length;
    await(i, end && immediate);
    Write write{data, uint32_t(part), key, remote, job.keys[i]};
    write.signaled = end && signaled;
    write.immediate = end && immediate;
    write.value = immediate ? *immediate : 0;
    job.put.until[i] = rail(i).post(write) + 1;
    data += part;
    remote += part;
    length -= part;
  }
}

void VerbsLink::send_from(Job& job, Pinned source, const std::byte* data, size_t length,
                          bool last) {
  size_t rails = length >= kStripeBytes ? parts_.rails.size() : 1;
  if (rails > 1) stripes_++;
  job.put.sources.push_back(source);
  uint32_t value = immediate(job.counter);
  const uint32_t* told = last && job.counter != kNoCounter ? &value : nullptr;
  size_t share = (length + rails * 4096 - 1) / (rails * 4096) * 4096;
  for (size_t i = rails - 1; i > 0; i--)
    send_range(job, i, *source, data + i * share, std::min(share, length - i * share),
               job.remote + i * share, true, &stripes_);
  send_range(job, 0, *source, data, std::min(share, length), job.remote, true, told);
  job.remote += length;
}

uint64_t VerbsLink::put(const Target& target, size_t offset, const Piece* pieces, int n,
                        uint32_t counter) {
  size_t total = 0;
  int end = 0;  // after the last piece that is not empty
  for (int i = 0; i < n; i++) {
    if (pieces[i].length > SIZE_MAX - total)
      fail(ErrorKind::invalid, "put", "the pieces' lengths are more than memory can hold");
    total += pieces[i].length;
    if (pieces[i].length) end = i + 1;
  }
  if (total > 0 && (offset > target.length || total > target.length - offset))
    fail(ErrorKind::invalid, "put", "the bytes do not fit the region",
         "at most " + std::to_string(target.length) + " bytes",
         std::to_string(total) + " bytes at offset " + std::to_string(offset));
  if (counter != kNoCounter && counter >= kCounters)
    fail(ErrorKind::invalid, "put", "there is no such counter",
         "less than " + std::to_string(kCounters), std::to_string(counter));

  std::lock_guard lock(sending_);
  Job job{target.address + offset, target.keys, counter, {}};
  if (total == 0) {
    if (counter != kNoCounter) signal(counter);
    return last_ticket_;
  }
  std::vector<Pinned> found(size_t(end), nullptr);
  bool host = true, regions = true;
  for (int i = 0; i < end; i++) {
    if (!pieces[i].length) continue;
    found[i] = memory().find(pieces[i].data, pieces[i].length);
    if (!found[i]) regions = false;
    if (found[i] && found[i]->device) host = false;
  }
  if (host && total <= std::min(rail(0).max_inline(), 1024u)) {
    send_inline(job, pieces, end, total);
  } else if (host && total <= slot_bytes_ && (!regions || end > 1)) {
    send_slots(job, pieces, end, total, true);
  } else {
    try {
      send_pieces(job, pieces, end, found);
    } catch (...) {
      remember(job);  // a device may still read what was posted
      throw;
    }
    remember(job);
  }
  return last_ticket_;
}

void VerbsLink::send_pieces(Job& job, const Piece* pieces, int n,
                            const std::vector<Pinned>& found) {
  for (int i = 0; i < n; i++) {
    size_t length = pieces[i].length;
    if (length == 0) continue;
    auto data = static_cast<const std::byte*>(pieces[i].data);
    Pinned source = found[size_t(i)];
    if (!source && length > slot_bytes_) source = memory().borrow(data, length, devices_);
    if (source)
      send_from(job, std::move(source), data, length, i + 1 == n);
    else
      send_slots(job, &pieces[i], 1, length, i + 1 == n);
  }
}

// Gives the put its ticket, if its sources are read after the call.
void VerbsLink::remember(Job& job) {
  if (job.put.sources.empty()) return;
  std::lock_guard lock(tickets_);
  job.put.ticket = ++last_ticket_;
  under_way_.push_back(std::move(job.put));
}

bool VerbsLink::is_sent(uint64_t ticket) {
  if (sent_.load(std::memory_order_acquire) >= ticket) return true;
  settle();
  return sent_.load(std::memory_order_acquire) >= ticket;
}

// Forgets puts whose sources are free.
void VerbsLink::settle() {
  std::lock_guard lock(tickets_);
  while (!under_way_.empty()) {
    const Put& first = under_way_.front();
    for (size_t i = 0; i < parts_.rails.size(); i++)
      if (rail(i).completed() < first.until[i]) return;
    sent_.store(first.ticket, std::memory_order_release);
    under_way_.pop_front();
  }
}

// With polling_ held.
bool VerbsLink::poll() {
  if (abandoned_) return false;
  bool any = false;
  try {
    for (size_t i = 0; i < parts_.rails.size(); i++) {
      any |= rail(i).poll([&](uint32_t value) {
        if (i == 0) {
          held_.push_back(value);
          return;
        }
        if (value != ++delivered_[i])
          fail(ErrorKind::protocol, "verbs", "a striped put came out of turn");
        rail(i).release(1);
      });
    }
    deliver();
  } catch (const Error& error) {
    broken_ = true;
    throw Error(error.kind, error.what(), options_.peer);
  }
  if (any) settle();
  return any;
}

void VerbsLink::deliver() {
  while (!held_.empty()) {
    uint32_t slot = held_.front() & (kCounters - 1);
    uint32_t stripes = held_.front() >> kSlotBits;
    for (size_t i = 1; i < delivered_.size(); i++) {
      // The difference as a signed number of so many bits; it is small.
      int32_t ahead = int32_t((delivered_[i] - stripes) << kSlotBits) >> kSlotBits;
      if (ahead < 0) return;
    }
    held_.pop_front();
    advance(options_.counters->at[slot]);
    rail(0).release(1);
  }
}

bool VerbsLink::arm() {
  std::unique_lock lock(polling_, std::try_to_lock);
  if (!lock) return false;
  if (abandoned_ || broken_) return true;
  for (auto& rail : parts_.rails) {
    rail->arm();
    std::string why = parts_.context->broken(rail->port().device);
    if (!why.empty()) {
      broken_ = true;
      fail(ErrorKind::peer_lost, "verbs", why, "", "", "", options_.peer);
    }
  }
  return !poll();
}

// What was put before the link is closed arrives: a queue pair that is destroyed sends no more.
// A peer that has closed its end waits for nothing.
void VerbsLink::drain() {
  try {
    std::lock_guard lock(polling_);
    for (auto& rail : parts_.rails) rail->close();
    auto deadline = Clock::now() + kDrain;
    for (auto& rail : parts_.rails) {
      while (rail->completed() < rail->posted() && !rail->peer_closed() &&
             Clock::now() < deadline) {
        if (!poll()) std::this_thread::yield();
      }
    }
  } catch (const Error&) {
    // The peer has gone: nothing is left to do for it.
  }
}

class PendingVerbs final : public PendingLink {
 public:
  PendingVerbs(const LinkOptions& options, std::shared_ptr<VerbsContext> context)
      : options_(options) {
    static_assert(sizeof(CreditWords) * kMaxRails <= 4096);
    parts_.context = std::move(context);
    size_t control = page_size(), slots = kSlots * kSlotBytes;
    void* base =
        mmap(nullptr, control + slots, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail_errno("verbs", "no memory for a link", errno);
    parts_.memory = Mapping(static_cast<std::byte*>(base), control + slots);
    auto words = static_cast<CreditWords*>(base);
    Memory& memory = parts_.context->memory();
    parts_.control = memory.make(words, control, kAccessLocalWrite | kAccessRemoteWrite, ~0u);
    parts_.slots = memory.make(parts_.memory.base() + control, slots, 0, ~0u);
    for (const Port& port : parts_.context->ports())
      parts_.rails.push_back(std::make_unique<Rail>(*parts_.context, port,
                                                    new (words++) CreditWords{}, parts_.control));
  }

  std::string offer() override {
    Offer offer{};
    std::memcpy(offer.magic, kOfferMagic, sizeof offer.magic);
    offer.rails = uint32_t(parts_.rails.size());
    for (size_t i = 0; i < parts_.rails.size(); i++) offer.rail[i] = parts_.rails[i]->offer();
    return std::string(reinterpret_cast<const char*>(&offer), sizeof offer);
  }

  std::unique_ptr<Link> connect(const std::string& text, Deadline) override {
    Offer peer;
    if (text.size() != sizeof peer)
      fail(ErrorKind::protocol, "verbs", "the peer's offer has a wrong length");
    std::memcpy(&peer, text.data(), sizeof peer);
    if (std::memcmp(peer.magic, kOfferMagic, sizeof peer.magic) != 0 || peer.rails < 1 ||
        peer.rails > uint32_t(kMaxRails))
      fail(ErrorKind::protocol, "verbs", "the peer's offer is none of this protocol");
    std::vector<bool> ours, theirs;
    for (auto& rail : parts_.rails) ours.push_back(rail->port().ethernet);
    for (uint32_t i = 0; i < peer.rails; i++) theirs.push_back(peer.rail[i].ethernet != 0);
    auto pairs = pair_ports(ours, theirs);
    if (pairs.empty())
      fail(ErrorKind::system, "verbs",
           "one end has InfiniBand ports only, the other Ethernet only");
    // Different pairs of ranks have different first rails: those carry all that is small.
    std::rotate(pairs.begin(), pairs.begin() + (options_.rank + options_.peer) % int(pairs.size()),
                pairs.end());
    std::vector<std::unique_ptr<Rail>> joined;
    for (auto [mine, other] : pairs) {
      parts_.rails[size_t(mine)]->connect(peer.rail[other]);
      joined.push_back(std::move(parts_.rails[size_t(mine)]));
    }
    parts_.rails = std::move(joined);
    return std::make_unique<VerbsLink>(options_, std::move(parts_));
  }

 private:
  const LinkOptions options_;
  Parts parts_;
};

}  // namespace

std::unique_ptr<PendingLink> prepare_verbs(const LinkOptions& options,
                                           std::shared_ptr<VerbsContext> context) {
  return std::make_unique<PendingVerbs>(options, std::move(context));
}

}  // namespace eager::comm
