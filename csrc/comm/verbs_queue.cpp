#include "verbs_queue.h"

#include <arpa/inet.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "verbs_api.h"

namespace eager::comm::verbs {

namespace {

constexpr uint32_t kDepth = 512;        // receives, and writes under way
constexpr uint32_t kInline = 192;       // asked for; devices may give more or less
constexpr uint32_t kReserved = 2;       // room that puts leave to grants and the end
constexpr uint64_t kReceive = ~0ull;    // number of all receives
constexpr uint8_t kAckTimeout = 18;     // 4.096 us * 2^18 = 1.07 s until a packet is sent again
constexpr uint8_t kRetries = 7;         // then the peer is lost
constexpr uint8_t kForever = 7;         // of rnr_retry
constexpr uint8_t kNotReadyTimer = 12;  // 0.64 ms
constexpr uint8_t kHops = 64;

[[noreturn]] void refuse(const Port& port, const char* what, int error) {
  fail_errno("verbs", port.text + ": cannot " + what, error);
}

}  // namespace

Rail::Rail(VerbsContext& context, const Port& port, CreditWords* words, Pinned control)
    : api_(context.api()), port_(port), words_(words), control_(std::move(control)) {
  const Device& device = context.devices()[port.device];
  send_depth_ = std::min(kDepth, uint32_t(std::max(device.limits.max_qp_wr, 8)));
  depth_ = send_depth_;
  try {
    channel_ = api_.create_comp_channel(device.context);
    if (!channel_) refuse(port_, "make a completion channel", errno);
    int flags = fcntl(channel_->fd, F_GETFL);
    if (flags < 0 || fcntl(channel_->fd, F_SETFL, flags | O_NONBLOCK) != 0)
      refuse(port_, "make its completion channel non-blocking", errno);
    int entries = int(send_depth_ + depth_);
    cq_ = api_.create_cq(device.context, std::min(entries, device.limits.max_cqe), nullptr,
                         channel_, 0);
    if (!cq_) refuse(port_, "make a completion queue", errno);
    for (uint32_t wanted : {kInline, 64u, 0u}) {
      ibv_qp_init_attr attributes{};
      attributes.send_cq = attributes.recv_cq = cq_;
      attributes.qp_type = kQpReliable;
      attributes.cap = {send_depth_, depth_, 1, 1, wanted};
      qp_ = api_.create_qp(device.pd, &attributes);
      max_inline_ = attributes.cap.max_inline_data;
      if (qp_) break;
    }
    if (!qp_) refuse(port_, "make a queue pair", errno);
    std::random_device random;
    psn_ = random() & 0xffffff;
    ibv_qp_attr attributes{};
    attributes.qp_state = kQpInit;
    attributes.port_num = port_.number;
    attributes.qp_access_flags = kAccessRemoteWrite;
    if (int error =
            api_.modify_qp(qp_, &attributes, kSetState | kSetPkeyIndex | kSetPort | kSetAccess))
      refuse(port_, "initialise a queue pair", error);
    receive(depth_);
  } catch (...) {
    destroy();
    throw;
  }
}

Rail::~Rail() { destroy(); }

void Rail::destroy() {
  if (qp_) api_.destroy_qp(qp_);
  if (cq_) api_.destroy_cq(cq_);
  if (channel_) api_.destroy_comp_channel(channel_);
}

RailOffer Rail::offer() const {
  RailOffer offer{};
  offer.queue = qp_->qp_num;
  offer.psn = psn_;
  offer.mtu = uint32_t(port_.attributes.active_mtu);
  offer.depth = depth_;
  offer.credit_address = reinterpret_cast<uint64_t>(&words_->granted);
  offer.credit_key = control_->of[port_.device]->rkey;
  offer.lid = port_.attributes.lid;
  offer.ethernet = port_.ethernet;
  std::memcpy(offer.gid, port_.gid.raw, sizeof offer.gid);
  return offer;
}

void Rail::connect(const RailOffer& peer) {
  if (peer.queue > 0xffffff || peer.psn > 0xffffff || peer.mtu < 1 || peer.mtu > 5 ||
      peer.depth < 4 || peer.depth > 1u << 20 || peer.ethernet != uint8_t(port_.ethernet) ||
      peer.credit_address % 4 != 0)
    fail(ErrorKind::protocol, "verbs", "the peer's offer of a queue pair makes no sense");
  peer_ = peer;
  ibv_qp_attr attributes{};
  attributes.qp_state = kQpReadyToReceive;
  attributes.path_mtu = std::min(port_.attributes.active_mtu, int(peer.mtu));
  attributes.dest_qp_num = peer.queue;
  attributes.rq_psn = peer.psn;
  attributes.max_dest_rd_atomic = 1;
  attributes.min_rnr_timer = kNotReadyTimer;
  ibv_ah_attr& address = attributes.ah_attr;
  address.port_num = port_.number;
  address.dlid = peer.lid;
  std::memcpy(address.grh.dgid.raw, peer.gid, sizeof peer.gid);
  // Inside one InfiniBand subnet the LID alone is the address.
  address.is_global =
      port_.ethernet || address.dlid == 0 || address.grh.dgid.words[0] != port_.gid.words[0];
  address.grh.sgid_index = uint8_t(port_.gid_index);
  address.grh.hop_limit = kHops;
  if (int error = api_.modify_qp(qp_, &attributes,
                                 kSetState | kSetAddress | kSetMtu | kSetPeer | kSetReceivePsn |
                                     kSetMaxPeerReads | kSetReceiverTimer))
    refuse(port_, "reach the peer", error);
  attributes = {};
  attributes.qp_state = kQpReadyToSend;
  attributes.timeout = kAckTimeout;
  attributes.retry_cnt = kRetries;
  attributes.rnr_retry = kForever;
  attributes.sq_psn = psn_;
  attributes.max_rd_atomic = 1;
  if (int error = api_.modify_qp(
          qp_, &attributes,
          kSetState | kSetTimeout | kSetRetries | kSetReceiverRetries | kSetSendPsn | kSetMaxReads))
    refuse(port_, "make a queue pair ready to send", error);
}

bool Rail::room(bool immediate) const {
  if (posted() - completed() + kReserved >= send_depth_) return false;
  if (!immediate) return true;
  uint32_t unanswered =
      immediates_.load(std::memory_order_relaxed) - words_->granted.load(std::memory_order_acquire);
  if (unanswered > peer_.depth)
    fail(ErrorKind::protocol, "verbs", "the peer grants more than it was sent");
  return unanswered < peer_.depth;
}

uint64_t Rail::post(const Write& write) {
  std::lock_guard lock(posting_);
  return post_locked(write);
}

uint64_t Rail::post_locked(const Write& write) {
  uint64_t number = posted();
  ibv_sge source{reinterpret_cast<uint64_t>(write.source), write.length, write.local_key};
  ibv_send_wr request{};
  request.wr_id = number;
  request.sg_list = &source;
  request.num_sge = write.length ? 1 : 0;
  request.opcode = write.immediate ? kOpWriteWithImmediate : kOpWrite;
  request.imm_data = htonl(write.value);
  request.rdma.remote_addr = write.remote;
  request.rdma.rkey = write.remote_key;
  // Completions in the middle keep track of how much room there is.
  bool signaled = write.signaled || number + 1 - signaled_ >= std::min(16u, send_depth_ / 4);
  request.send_flags = (signaled ? kSendSignaled : 0) | (write.inlined ? kSendInline : 0);
  ibv_send_wr* bad = nullptr;
  if (int error = post_send(qp_, &request, &bad)) refuse(port_, "post a write", error);
  if (signaled) signaled_ = number + 1;
  if (write.immediate) immediates_.fetch_add(1, std::memory_order_relaxed);
  posted_.store(number + 1, std::memory_order_relaxed);
  return number;
}

bool Rail::poll(const std::function<void(uint32_t)>& arrived) {
  ibv_wc done[32];
  bool any = false;
  for (int batch = 0; batch < 16; batch++) {
    int n = poll_cq(cq_, 32, done);
    if (n < 0) fail(ErrorKind::peer_lost, "verbs", port_.text + ": its completion queue broke");
    for (int i = 0; i < n; i++) {
      if (done[i].status != kWcSuccess) {
        if (stopped_.load(std::memory_order_relaxed)) continue;
        fail(ErrorKind::peer_lost, "verbs",
             port_.text + ": the connection broke: " + api_.wc_status_str(done[i].status) +
                 " (status " + std::to_string(done[i].status) + ", vendor's code " +
                 std::to_string(done[i].vendor_err) + ")");
      }
      if (done[i].wr_id != kReceive)
        completed_.store(done[i].wr_id + 1, std::memory_order_release);
      else if (done[i].opcode == kWcReceivedImmediate)
        arrived(ntohl(done[i].imm_data));
      else
        fail(ErrorKind::protocol, "verbs", "the peer sent a message that is no write");
    }
    any |= n > 0;
    if (n < 32) break;
  }
  if (released_ - reposted_ >= depth_ / 8) {
    receive(released_ - reposted_);
    reposted_ = released_;
  }
  if (reposted_ - granted_ >= depth_ / 4) grant();
  return any;
}

void Rail::release(uint32_t n) { released_ += n; }

void Rail::receive(uint32_t n) {
  ibv_recv_wr chain[32];
  while (n > 0) {
    uint32_t batch = std::min<uint32_t>(n, 32);
    for (uint32_t i = 0; i < batch; i++)
      chain[i] = {kReceive, i + 1 < batch ? &chain[i + 1] : nullptr, nullptr, 0};
    ibv_recv_wr* bad = nullptr;
    if (int error = post_recv(qp_, chain, &bad)) refuse(port_, "post receives", error);
    n -= batch;
  }
}

// One grant at a time is under way; the next says all that has come meanwhile.
void Rail::grant() {
  if (completed() < granting_) return;
  std::lock_guard lock(posting_);
  if (posted() - completed() >= send_depth_) return;
  granted_ = reposted_;
  write_word(words_->grant, reposted_, peer_.credit_address);
  granting_ = posted();
}

void Rail::close() {
  std::lock_guard lock(posting_);
  if (posted() - completed() >= send_depth_) return;
  write_word(words_->closing, 1, peer_.credit_address + sizeof(uint32_t));
}

void Rail::write_word(std::atomic<uint32_t>& source, uint32_t value, uint64_t remote) {
  source.store(value, std::memory_order_release);
  Write write{&source, sizeof value, control_->of[port_.device]->lkey, remote, peer_.credit_key};
  write.inlined = max_inline_ >= sizeof value;
  write.signaled = true;
  post_locked(write);
}

void Rail::arm() {
  ibv_cq* cq = nullptr;
  void* unused = nullptr;
  unsigned events = 0;
  while (api_.get_cq_event(channel_, &cq, &unused) == 0) events++;
  if (events) api_.ack_cq_events(cq_, events);
  if (int error = req_notify_cq(cq_)) refuse(port_, "ask for completion events", error);
}

void Rail::stop() {
  if (stopped_.exchange(true)) return;
  ibv_qp_attr attributes{};
  attributes.qp_state = kQpError;
  api_.modify_qp(qp_, &attributes, kSetState);
}

}  // namespace eager::comm::verbs
