#include "shm.h"

#include <cstring>

#include "frame.h"

namespace eager::comm {
namespace {

constexpr uint32_t kKeyTag = 0x6d687365;  // "eshm"

class ShmLink final : public Link {
 public:
  ShmLink(const LinkOptions& options, std::shared_ptr<PeerRegions> regions, Counters* theirs)
      : options_(options), regions_(std::move(regions)), theirs_(theirs) {}

  const char* name() const override { return "shm"; }
  void attach(const Registered&) override {}
  void detach(const Registered&) override {}

  Key key(const Registered& r) override {
    Writer w;
    w.u32(kKeyTag).u32(static_cast<uint32_t>(options_.rank)).u32(r.id).u64(r.length);
    Key key{};
    std::memcpy(key.data(), w.bytes().data(), w.bytes().size());
    return key;
  }

  Target import(const Key& key) override {
    Reader r(key.data(), key.size());
    const uint32_t tag = r.u32(), owner = r.u32(), id = r.u32();
    const uint64_t length = r.u64();
    if (tag != kKeyTag || owner != static_cast<uint32_t>(options_.peer) ||
        id == PeerRegions::kCountersRegion)
      fail(ErrorKind::protocol, "import",
           "this is no key of rank " + std::to_string(options_.peer));
    Target t;
    t.region = id;
    t.length = length;
    t.mapped = regions_->get(id, length, Clock::now() + options_.timeout);
    return t;
  }

  uint64_t put(const Target& target, size_t offset, const Piece* pieces, int n,
               uint32_t counter) override {
    std::byte* out = target.mapped + offset;
    for (int i = 0; i < n; ++i) {
      if (pieces[i].length == 0) continue;
      std::memcpy(out, pieces[i].data, pieces[i].length);
      out += pieces[i].length;
    }
    if (counter != kNoCounter) advance(theirs_->at[counter]);
    return 0;
  }
  bool is_sent(uint64_t) override { return true; }
  void progress() override {}
  bool passive() const override { return true; }
  void abandon() override { regions_->close(); }

 private:
  const LinkOptions options_;
  const std::shared_ptr<PeerRegions> regions_;
  Counters* const theirs_;
};

class PendingShm final : public PendingLink {
 public:
  PendingShm(const LinkOptions& options, int size, std::shared_ptr<PeerRegions> regions)
      : options_(options), size_(size), regions_(std::move(regions)) {}

  std::string offer() override { return ""; }

  std::unique_ptr<Link> connect(const std::string& peer_offer, Deadline deadline) override {
    if (!peer_offer.empty())
      fail(ErrorKind::protocol, "connect", "unexpected offer of a shared memory link");
    std::byte* base = regions_->get(PeerRegions::kCountersRegion,
                                    static_cast<size_t>(size_) * sizeof(Counters), deadline);
    Counters* theirs = reinterpret_cast<Counters*>(base) + options_.rank;
    return std::make_unique<ShmLink>(options_, regions_, theirs);
  }

 private:
  const LinkOptions options_;
  const int size_;
  const std::shared_ptr<PeerRegions> regions_;
};

}  // namespace

void PeerRegions::announce(uint32_t id, size_t length, const Fd& fd) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (regions_.size() >= kLimit || id < next_ || id == UINT32_MAX)
      fail(ErrorKind::protocol, "import", "a peer announced memory twice, or too many regions");
  }
  Mapping mapping = map_segment(fd.get(), length);  // one thread announces
  const std::lock_guard<std::mutex> lock(mutex_);
  regions_.emplace(id, Entry{std::move(mapping), length, false});
  next_ = id + 1;
  changed_.notify_all();
}

void PeerRegions::withdraw(uint32_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (id == kCountersRegion || regions_.erase(id) == 0)
    fail(ErrorKind::protocol, "import", "a peer withdrew memory that it never announced");
}

std::byte* PeerRegions::get(uint32_t id, size_t length, Deadline deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto it = regions_.end();
  const bool known = changed_.wait_until(lock, deadline, [&] {
    it = regions_.find(id);
    return closed_ || it != regions_.end() || id < next_;
  });
  if (closed_) fail(ErrorKind::peer_lost, "import", "the peer was lost");
  if (!known || it == regions_.end())
    fail(ErrorKind::protocol, "import", "a peer's key names memory that it did not announce", "",
         "region " + std::to_string(id));
  Entry& e = it->second;
  if (e.length != length)
    fail(ErrorKind::protocol, "import", "a peer's key and its memory have different lengths",
         std::to_string(e.length) + " bytes", std::to_string(length) + " bytes");
  // Counters are sparse: the pages of other pairs would be made for nothing.
  if (!e.populated && id != kCountersRegion) {
    populate(e.mapping);
    e.populated = true;
  }
  return e.mapping.base();
}

void PeerRegions::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

std::unique_ptr<PendingLink> prepare_shm(const LinkOptions& options, int size,
                                         std::shared_ptr<PeerRegions> regions) {
  return std::make_unique<PendingShm>(options, size, std::move(regions));
}

}  // namespace eager::comm
