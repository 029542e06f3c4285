#include "fake_verbs.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

namespace eager::comm::fake {

using namespace verbs;

namespace {

struct Pipe {
  int ends[2];
  Pipe() {
    if (pipe(ends) != 0) std::abort();
  }
  ~Pipe() {
    close(ends[0]);
    close(ends[1]);
  }
  void write_one() {
    char byte = 0;
    if (write(ends[1], &byte, 1) != 1) std::abort();
  }
  bool read_one() {
    char byte;
    return read(ends[0], &byte, 1) == 1;
  }
};

struct Channel : ibv_comp_channel {
  Pipe pipe;
  ibv_cq* cq = nullptr;
};

struct Queue : ibv_cq {
  std::mutex mutex;
  std::deque<ibv_wc> entries;
  bool armed = false;

  void push(const ibv_wc& entry) {
    std::lock_guard lock(mutex);
    if (entries.size() >= size_t(cqe)) std::abort();  // overrun
    entries.push_back(entry);
    if (std::exchange(armed, false)) static_cast<Channel*>(channel)->pipe.write_one();
  }
};

struct Work {
  ibv_send_wr request;
  ibv_sge source;
  std::vector<std::byte> inlined;
};

struct Pair : ibv_qp {
  std::mutex mutex;
  std::condition_variable changed;
  int state = 0;
  uint32_t peer = 0;
  uint32_t max_send = 0, max_receive = 0, max_inline = 0;
  std::deque<Work> work;
  std::deque<uint64_t> receives;
  bool ending = false;
  std::thread carrier;
};

struct Open : ibv_context {
  int index;
  Pipe events;
};

struct State {
  std::vector<Device> devices;
  std::vector<std::unique_ptr<ibv_device>> listed;
  std::string folder;
  std::mutex mutex;
  std::map<uint32_t, Pair*> pairs;
  std::map<uint32_t, std::pair<ibv_mr*, int>> memory;  // key -> range, access
  uint32_t next = 100;
  std::vector<std::atomic<uint64_t>> bytes;
  std::atomic<uint64_t> not_ready{0}, completions{0}, writes{0};
  std::atomic<bool> cut{false}, refuse{false};
  std::vector<Open*> open;

  explicit State(std::vector<Device> all) : devices(std::move(all)), bytes(devices.size()) {}
};
State* state = nullptr;

ibv_wc entry(const Pair& pair, uint64_t id, int status, int opcode, uint32_t value = 0) {
  ibv_wc wc{};
  wc.wr_id = id;
  wc.status = status;
  wc.opcode = opcode;
  wc.qp_num = pair.qp_num;
  wc.imm_data = value;
  return wc;
}

void to_error(Pair& pair, std::unique_lock<std::mutex>&) {
  pair.state = kQpError;
  for (uint64_t id : pair.receives)
    static_cast<Queue*>(pair.recv_cq)->push(entry(pair, id, kWcFlushed, 0));
  pair.receives.clear();
  for (Work& work : pair.work)
    static_cast<Queue*>(pair.send_cq)->push(entry(pair, work.request.wr_id, kWcFlushed, 0));
  pair.work.clear();
}

// The range of a key, if it allows the access.
bool allowed(uint32_t key, uint64_t address, uint64_t length, int access) {
  auto at = state->memory.find(key);
  if (at == state->memory.end() || (at->second.second & access) != access) return false;
  uint64_t begin = reinterpret_cast<uint64_t>(at->second.first->addr);
  return address >= begin && address + length <= begin + at->second.first->length;
}

// Writes as a device does: words of the flow control are read while they are written.
void place(uint64_t to, const void* from, size_t length) {
  if (length == 4 && to % 4 == 0) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    reinterpret_cast<std::atomic<uint32_t>*>(to)->store(word, std::memory_order_release);
  } else {
    std::memcpy(reinterpret_cast<void*>(to), from, length);
  }
}

constexpr int kRetriesExceeded = 12, kRemoteAccess = 10, kLocalProtection = 4;

// Carries out one write; the status of its completion.  -1: the receiver is not ready.
int carry(Pair& pair, const Work& work) {
  const auto& request = work.request;
  std::lock_guard world(state->mutex);
  if (state->cut) return kRetriesExceeded;
  auto at = state->pairs.find(pair.peer);
  if (at == state->pairs.end()) return kRetriesExceeded;
  Pair& peer = *at->second;
  size_t length = request.num_sge ? work.source.length : 0;
  bool inlined = request.send_flags & kSendInline;
  if (length && !inlined && !allowed(work.source.lkey, work.source.addr, length, 0))
    return kLocalProtection;
  if (length && !allowed(request.rdma.rkey, request.rdma.remote_addr, length, kAccessRemoteWrite))
    return kRemoteAccess;
  std::lock_guard lock(peer.mutex);
  if (peer.state != kQpReadyToReceive && peer.state != kQpReadyToSend) return kRetriesExceeded;
  bool immediate = request.opcode == kOpWriteWithImmediate;
  if (immediate && peer.receives.empty()) {
    state->not_ready++;
    return -1;
  }
  if (length)
    place(request.rdma.remote_addr,
          inlined ? work.inlined.data() : reinterpret_cast<void*>(work.source.addr), length);
  state->bytes[static_cast<Open*>(pair.context)->index] += length;
  state->writes++;
  if (immediate) {
    uint64_t id = peer.receives.front();
    peer.receives.pop_front();
    static_cast<Queue*>(peer.recv_cq)
        ->push(entry(peer, id, kWcSuccess, kWcReceivedImmediate, request.imm_data));
  }
  return kWcSuccess;
}

void run(Pair& pair) {
  std::minstd_rand random(pair.qp_num);
  std::unique_lock lock(pair.mutex);
  while (true) {
    pair.changed.wait(lock, [&] { return pair.ending || !pair.work.empty(); });
    if (pair.ending) return;
    Work work = std::move(pair.work.front());
    pair.work.pop_front();
    lock.unlock();
    int status;
    do {
      if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
      status = carry(pair, work);
    } while (status < 0);
    lock.lock();
    if (pair.state == kQpError) status = kWcFlushed;
    if (status != kWcSuccess || work.request.send_flags & kSendSignaled)
      static_cast<Queue*>(pair.send_cq)
          ->push(entry(pair, work.request.wr_id, status, kWcRdmaWrite));
    if (status == kWcSuccess && work.request.send_flags & kSendSignaled) state->completions++;
    if (status != kWcSuccess && pair.state != kQpError) to_error(pair, lock);
  }
}

int poll(ibv_cq* cq, int n, ibv_wc* wc) {
  auto& queue = *static_cast<Queue*>(cq);
  std::lock_guard lock(queue.mutex);
  int taken = 0;
  for (; taken < n && !queue.entries.empty(); taken++) {
    wc[taken] = queue.entries.front();
    queue.entries.pop_front();
  }
  return taken;
}

int request_notify(ibv_cq* cq, int) {
  auto& queue = *static_cast<Queue*>(cq);
  std::lock_guard lock(queue.mutex);
  queue.armed = true;
  return 0;
}

int send(ibv_qp* qp, ibv_send_wr* request, ibv_send_wr** bad) {
  auto& pair = *static_cast<Pair*>(qp);
  std::lock_guard lock(pair.mutex);
  *bad = request;
  if (pair.work.size() >= pair.max_send) return ENOMEM;
  if (pair.state == kQpError) {
    static_cast<Queue*>(pair.send_cq)->push(entry(pair, request->wr_id, kWcFlushed, 0));
    return 0;
  }
  if (pair.state != kQpReadyToSend) return EINVAL;
  Work work{*request, request->num_sge ? *request->sg_list : ibv_sge{}, {}};
  if (request->send_flags & kSendInline) {
    if (work.source.length > pair.max_inline) return EINVAL;
    auto data = reinterpret_cast<std::byte*>(work.source.addr);
    work.inlined.assign(data, data + work.source.length);
  }
  if (work.source.length > state->devices[static_cast<Open*>(pair.context)->index].max_message)
    return EINVAL;
  pair.work.push_back(std::move(work));
  pair.changed.notify_one();
  return 0;
}

int receive(ibv_qp* qp, ibv_recv_wr* request, ibv_recv_wr** bad) {
  auto& pair = *static_cast<Pair*>(qp);
  std::lock_guard lock(pair.mutex);
  for (; request; request = request->next) {
    *bad = request;
    if (pair.receives.size() >= pair.max_receive) return ENOMEM;
    pair.receives.push_back(request->wr_id);
  }
  return 0;
}

ibv_device** list(int* n) {
  auto all = new ibv_device*[state->listed.size() + 1];
  *n = int(state->listed.size());
  for (int i = 0; i < *n; i++) all[i] = state->listed[size_t(i)].get();
  all[*n] = nullptr;
  return all;
}

ibv_context* open_device(ibv_device* device) {
  auto made = new Open{};
  made->device = device;
  made->async_fd = made->events.ends[0];
  made->ops.poll_cq = poll;
  made->ops.req_notify_cq = request_notify;
  made->ops.post_send = send;
  made->ops.post_recv = receive;
  while (state->listed[size_t(made->index)].get() != device) made->index++;
  std::lock_guard lock(state->mutex);
  state->open.push_back(made);
  return made;
}

int close_device(ibv_context* context) {
  auto opened = static_cast<Open*>(context);
  std::lock_guard lock(state->mutex);
  for (auto& other : state->open)
    if (other == opened) other = nullptr;
  delete opened;
  return 0;
}

const Device& of(ibv_context* context) {
  return state->devices[size_t(static_cast<Open*>(context)->index)];
}

int query_device(ibv_context* context, ibv_device_attr* attributes) {
  *attributes = {};
  attributes->max_qp_wr = of(context).max_work;
  attributes->max_cqe = 1 << 16;
  attributes->phys_port_cnt = 1;
  return 0;
}

int query_port(ibv_context* context, uint8_t, ibv_port_attr* attributes) {
  const Device& device = of(context);
  attributes->state = device.active ? kPortActive : 1;
  attributes->active_mtu = 5;
  attributes->gid_tbl_len = int(device.gids.size());
  attributes->max_msg_sz = device.max_message;
  attributes->lid = device.ethernet ? 0 : 7;
  attributes->link_layer = device.ethernet ? kLinkEthernet : kLinkInfiniBand;
  return 0;
}

int query_gid(ibv_context* context, uint8_t, int index, ibv_gid* gid) {
  const Device& device = of(context);
  if (index < 0 || size_t(index) >= device.gids.size()) return -1;
  *gid = {};
  inet_pton(AF_INET6, device.gids[size_t(index)].address.c_str(), gid->raw);
  return 0;
}

ibv_mr* reg_mr(ibv_pd* pd, void* address, size_t length, int access) {
  if (state->refuse) {
    errno = ENOMEM;
    return nullptr;
  }
  std::lock_guard lock(state->mutex);
  uint32_t key = state->next++;
  auto mr = new ibv_mr{pd->context, pd, address, length, key, key, key};
  state->memory[key] = {mr, access};
  return mr;
}

int dereg_mr(ibv_mr* mr) {
  std::lock_guard lock(state->mutex);
  state->memory.erase(mr->lkey);
  delete mr;
  return 0;
}

ibv_cq* create_cq(ibv_context* context, int entries, void*, ibv_comp_channel* channel, int) {
  auto queue = new Queue{};
  queue->context = context;
  queue->channel = channel;
  queue->cqe = entries;
  static_cast<Channel*>(channel)->cq = queue;
  return queue;
}

ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) {
  int most = of(pd->context).max_inline;
  if (int(attributes->cap.max_inline_data) > most && most < 64) {
    errno = EINVAL;
    return nullptr;
  }
  attributes->cap.max_inline_data = uint32_t(most);
  auto pair = new Pair{};
  pair->context = pd->context;
  pair->send_cq = attributes->send_cq;
  pair->recv_cq = attributes->recv_cq;
  pair->max_send = attributes->cap.max_send_wr;
  pair->max_receive = attributes->cap.max_recv_wr;
  pair->max_inline = uint32_t(most);
  std::lock_guard lock(state->mutex);
  pair->qp_num = state->next++;
  state->pairs[pair->qp_num] = pair;
  pair->carrier = std::thread([pair] { run(*pair); });
  return pair;
}

int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int) {
  auto& pair = *static_cast<Pair*>(qp);
  std::unique_lock lock(pair.mutex);
  if (attributes->qp_state == kQpReadyToReceive) pair.peer = attributes->dest_qp_num;
  if (attributes->qp_state == kQpError)
    to_error(pair, lock);
  else
    pair.state = attributes->qp_state;
  return 0;
}

int destroy_qp(ibv_qp* qp) {
  auto pair = static_cast<Pair*>(qp);
  {
    std::lock_guard world(state->mutex);
    state->pairs.erase(pair->qp_num);
    std::lock_guard lock(pair->mutex);
    pair->ending = true;
    pair->changed.notify_one();
  }
  pair->carrier.join();
  delete pair;
  return 0;
}

int get_async_event(ibv_context* context, ibv_async_event* event) {
  if (!static_cast<Open*>(context)->events.read_one()) return -1;
  *event = {};
  event->event_type = kEventDeviceFatal;
  return 0;
}

std::shared_ptr<const Api> make_api() {
  auto api = std::make_shared<Api>();
  api->fork_init = [] { return 0; };
  api->get_device_list = list;
  api->free_device_list = [](ibv_device** all) { delete[] all; };
  api->open_device = open_device;
  api->close_device = close_device;
  api->query_device = query_device;
  api->query_port = query_port;
  api->query_gid = query_gid;
  api->alloc_pd = [](ibv_context* context) { return new ibv_pd{context, 1}; };
  api->dealloc_pd = [](ibv_pd* pd) {
    delete pd;
    return 0;
  };
  api->reg_mr = reg_mr;
  api->reg_dmabuf_mr = nullptr;
  api->dereg_mr = dereg_mr;
  api->create_comp_channel = [](ibv_context* context) -> ibv_comp_channel* {
    auto channel = new Channel{};
    channel->context = context;
    channel->fd = channel->pipe.ends[0];
    return channel;
  };
  api->destroy_comp_channel = [](ibv_comp_channel* channel) {
    delete static_cast<Channel*>(channel);
    return 0;
  };
  api->create_cq = create_cq;
  api->destroy_cq = [](ibv_cq* cq) {
    delete static_cast<Queue*>(cq);
    return 0;
  };
  api->get_cq_event = [](ibv_comp_channel* channel, ibv_cq** cq, void**) {
    auto made = static_cast<Channel*>(channel);
    *cq = made->cq;
    return made->pipe.read_one() ? 0 : -1;
  };
  api->ack_cq_events = [](ibv_cq*, unsigned) {};
  api->create_qp = create_qp;
  api->modify_qp = modify_qp;
  api->destroy_qp = destroy_qp;
  api->get_async_event = get_async_event;
  api->ack_async_event = [](ibv_async_event*) {};
  api->wc_status_str = [](int status) {
    return status == kRetriesExceeded ? "transport retry counter exceeded" : "error";
  };
  api->event_type_str = [](int) { return "local catastrophic error"; };
  return api;
}

}  // namespace

Verbs::Verbs(std::vector<Device> devices) : api_(make_api()) {
  if (state) std::abort();
  state = new State(std::move(devices));
  char folder[] = "/tmp/fake_verbs_XXXXXX";
  if (!mkdtemp(folder)) std::abort();
  state->folder = folder;
  for (const Device& device : state->devices) {
    auto listed = std::make_unique<ibv_device>();
    listed->transport_type = device.transport;
    std::strncpy(listed->name, device.name.c_str(), sizeof listed->name - 1);
    std::string path = state->folder + "/" + device.name;
    std::strncpy(listed->ibdev_path, path.c_str(), sizeof listed->ibdev_path - 1);
    std::string types = path + "/ports/1/gid_attrs/types";
    std::filesystem::create_directories(types);
    for (size_t i = 0; i < device.gids.size(); i++)
      std::ofstream(types + "/" + std::to_string(i)) << device.gids[i].type << "\n";
    state->listed.push_back(std::move(listed));
  }
}

Verbs::~Verbs() {
  std::filesystem::remove_all(state->folder);
  delete state;
  state = nullptr;
}

void Verbs::refuse_registration(bool refuse) { state->refuse = refuse; }
void Verbs::cut() { state->cut = true; }
void Verbs::device_fatal(int index) {
  std::lock_guard lock(state->mutex);
  for (Open* opened : state->open)
    if (opened && opened->index == index) opened->events.write_one();
}
uint64_t Verbs::receiver_not_ready() const { return state->not_ready; }
uint64_t Verbs::registered() const {
  std::lock_guard lock(state->mutex);
  return state->memory.size();
}
uint64_t Verbs::bytes(int device) const { return state->bytes[size_t(device)]; }
uint64_t Verbs::completions() const { return state->completions; }
uint64_t Verbs::writes() const { return state->writes; }

}  // namespace eager::comm::fake
