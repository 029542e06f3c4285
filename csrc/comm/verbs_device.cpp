#include "verbs_device.h"

#include <arpa/inet.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "verbs.h"
#include "verbs_memory.h"

namespace eager::comm {

namespace verbs {

namespace {

// How good a GID is for RoCE: version 2 is routable UDP, and an IPv4 address is what the ranks'
// other connections use.
enum GidRank { kNone, kVersion1, kLinkLocal, kIPv6, kIPv4 };

bool is_ipv4(const ibv_gid& gid) {
  static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(gid.raw, mapped, sizeof mapped) == 0;
}

std::string gid_type(const ibv_device& device, int port, int index) {
  std::ifstream file(std::string(device.ibdev_path) + "/ports/" + std::to_string(port) +
                     "/gid_attrs/types/" + std::to_string(index));
  std::string type;
  std::getline(file, type);
  return type;
}

GidRank rank_gid(const ibv_gid& gid, const std::string& type) {
  if (gid.words[0] == 0 && gid.words[1] == 0) return kNone;
  if (type != "RoCE v2") return kVersion1;
  if (is_ipv4(gid)) return kIPv4;
  return gid.raw[0] == 0xfe && (gid.raw[1] & 0xc0) == 0x80 ? kLinkLocal : kIPv6;
}

std::string gid_text(const ibv_gid& gid) {
  char text[INET6_ADDRSTRLEN] = "";
  if (is_ipv4(gid))
    inet_ntop(AF_INET, gid.raw + 12, text, sizeof text);
  else
    inet_ntop(AF_INET6, gid.raw, text, sizeof text);
  return text;
}

// Fills gid and text.  False when the port has no usable GID; then `text` says so.
bool choose_gid(const Api& api, const Device& device, int wanted, Port& port) {
  std::string where = device.name + " port " + std::to_string(port.number);
  GidRank best = kNone;
  int first = wanted < 0 ? 0 : wanted;
  int last = wanted < 0 ? port.attributes.gid_tbl_len : wanted + 1;
  if (!port.ethernet && wanted < 0) last = std::min(last, 1);  // InfiniBand: the port's own is 0
  std::string chosen;
  for (int i = first; i < last; i++) {
    ibv_gid gid{};
    if (api.query_gid(device.context, port.number, i, &gid) != 0) continue;
    std::string type = gid_type(*device.context->device, port.number, i);
    GidRank rank = rank_gid(gid, type);
    if (rank <= best) continue;
    best = rank;
    port.gid = gid;
    port.gid_index = i;
    chosen = type;
  }
  int mtu = mtu_bytes(port.attributes.active_mtu);
  if (port.ethernet && best == kNone) {
    port.text = where + " has no GID" + (wanted < 0 ? "" : " at index " + std::to_string(wanted));
    return false;
  }
  port.text = where + (port.ethernet ? " (Ethernet, GID " + std::to_string(port.gid_index) + " " +
                                           chosen + " " + gid_text(port.gid)
                                     : " (InfiniBand, LID " + std::to_string(port.attributes.lid));
  port.text += ", MTU " + std::to_string(mtu) + ")";
  return true;
}

int number(const std::string& text, const std::string& list) {
  if (text.empty() || text.size() > 5 || text.find_first_not_of("0123456789") != std::string::npos)
    fail(ErrorKind::invalid, "verbs", "cannot read the list of devices",
         "names with optional port and GID index, e.g. mlx5_0,mlx5_1:1,rxe0:1:3", list);
  return std::atoi(text.c_str());
}

}  // namespace

std::vector<Choice> parse_choices(const std::string& devices) {
  std::vector<Choice> all;
  for (size_t at = 0; at < devices.size();) {
    size_t end = std::min(devices.find(',', at), devices.size());
    std::string item = devices.substr(at, end - at);
    at = end + 1;
    Choice choice;
    size_t colon = item.find(':');
    choice.device = item.substr(0, colon);
    if (colon != std::string::npos) {
      std::string rest = item.substr(colon + 1);
      size_t second = rest.find(':');
      choice.port = number(rest.substr(0, second), devices);
      if (second != std::string::npos) choice.gid = number(rest.substr(second + 1), devices);
    }
    if (choice.device.empty() || choice.port == 0 || choice.port > 255 || choice.gid > 255)
      number("", devices);
    all.push_back(choice);
  }
  return all;
}

}  // namespace verbs

using namespace verbs;

struct VerbsContext::Impl {
  std::shared_ptr<const Api> api;
  std::vector<Device> devices;
  std::vector<Port> ports;
  std::unique_ptr<Memory> memory;
  std::string description;
  std::mutex events;                  // guards what follows
  std::map<int, std::string> broken;  // device -> why

  ~Impl() {
    memory.reset();
    for (Device& device : devices) close(device);
  }

  void open(const std::string& list);
  void use(const Choice& choice, ibv_device* found, std::vector<std::string>& refused);
  void close(Device& device);
  void add_ports(const Choice& choice, int device, std::vector<std::string>& refused);
};

// Adds the device's ports that are wanted, active and have an address.
void VerbsContext::Impl::add_ports(const Choice& choice, int index,
                                   std::vector<std::string>& refused) {
  Device& device = devices[index];
  for (int n = 1; n <= device.limits.phys_port_cnt; n++) {
    if (choice.port >= 0 && n != choice.port) continue;
    if (ports.size() == size_t(kMaxRails)) return;
    if (std::any_of(ports.begin(), ports.end(),
                    [&](const Port& port) { return port.device == index && port.number == n; }))
      continue;  // named twice
    std::string where = device.name + " port " + std::to_string(n);
    Port port{};
    port.device = index;
    port.number = uint8_t(n);
    if (int error = api->query_port(device.context, port.number, &port.attributes)) {
      refused.push_back(where + ": " + std::strerror(error));
      continue;
    }
    if (port.attributes.state != kPortActive) {
      refused.push_back(where + " is not active");
      continue;
    }
    port.ethernet = port.attributes.link_layer == kLinkEthernet;
    if (!choose_gid(*api, device, choice.gid, port))
      refused.push_back(port.text);
    else
      ports.push_back(port);
  }
}

void VerbsContext::Impl::close(Device& device) {
  if (device.pd) api->dealloc_pd(device.pd);
  api->close_device(device.context);
}

// Opens the device if that is not done yet; it stays open if it has a port that can be used.
void VerbsContext::Impl::use(const Choice& choice, ibv_device* found,
                             std::vector<std::string>& refused) {
  auto same = std::find_if(devices.begin(), devices.end(),
                           [&](const Device& device) { return device.name == choice.device; });
  if (same != devices.end()) return add_ports(choice, int(same - devices.begin()), refused);
  if (ports.size() == size_t(kMaxRails)) return;
  Device device{choice.device, api->open_device(found), nullptr, {}};
  if (!device.context) {
    refused.push_back(choice.device + " cannot be opened: " + std::strerror(errno));
    return;
  }
  // Asynchronous events are looked for, never waited for.
  int flags = fcntl(device.context->async_fd, F_GETFL);
  if (flags < 0 || fcntl(device.context->async_fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
      !(device.pd = api->alloc_pd(device.context)) ||
      api->query_device(device.context, &device.limits) != 0) {
    refused.push_back(choice.device + " cannot be used: " + std::strerror(errno));
    close(device);
    return;
  }
  devices.push_back(device);
  size_t before = ports.size();
  add_ports(choice, int(devices.size()) - 1, refused);
  if (ports.size() > before) return;
  close(devices.back());
  devices.pop_back();
}

void VerbsContext::Impl::open(const std::string& list) {
  std::vector<Choice> choices = parse_choices(list);
  int count = 0;
  errno = 0;
  ibv_device** found = api->get_device_list(&count);
  if (!found || count == 0) {
    std::string why = !found && errno ? std::string(" (") + std::strerror(errno) + ")" : "";
    if (found) api->free_device_list(found);
    fail(ErrorKind::system, "verbs", "no RDMA device on this host" + why, "", "",
         "ls /sys/class/infiniband");
  }
  std::vector<ibv_device*> sorted(found, found + count);
  std::sort(sorted.begin(), sorted.end(),
            [](auto* a, auto* b) { return std::strcmp(a->name, b->name) < 0; });
  std::string names;
  for (ibv_device* device : sorted)
    names += (names.empty() ? "" : ", ") + std::string(device->name);
  if (choices.empty())
    for (ibv_device* device : sorted) choices.push_back({device->name, -1, -1});
  std::vector<std::string> refused;
  std::string missing;
  for (const Choice& choice : choices) {
    auto at = std::find_if(sorted.begin(), sorted.end(),
                           [&](auto* device) { return choice.device == device->name; });
    if (at == sorted.end()) {
      missing = choice.device;
      break;
    }
    if ((*at)->transport_type != kTransportInfiniBand) {
      refused.push_back(choice.device + " is neither InfiniBand nor RoCE");
      continue;
    }
    use(choice, *at, refused);
  }
  api->free_device_list(found);
  if (!missing.empty())
    fail(ErrorKind::invalid, "verbs", "there is no RDMA device of this name", names, missing);
  if (ports.empty()) {
    std::string all;
    for (const std::string& reason : refused) all += (all.empty() ? "" : "; ") + reason;
    fail(ErrorKind::system, "verbs", "no RDMA port can be used: " + all);
  }
}

VerbsContext::VerbsContext(const std::string& devices) : VerbsContext(devices, nullptr) {}

VerbsContext::VerbsContext(const std::string& devices, std::shared_ptr<const Api> api)
    : impl_(std::make_unique<Impl>()) {
  std::string why;
  impl_->api = api ? std::move(api) : Api::open(&why);
  if (!impl_->api)
    fail(ErrorKind::system, "verbs", why, "", "", "apt install libibverbs1 ibverbs-providers");
  impl_->open(devices);
  impl_->memory = std::make_unique<Memory>(*impl_->api, impl_->devices);
  for (const Port& port : impl_->ports)
    impl_->description += (impl_->description.empty() ? "" : ", ") + port.text;
  const char* log = std::getenv("EAGER_COMM_LOG");
  if (log && *log && std::strcmp(log, "0") != 0)
    std::fprintf(stderr, "eager.comm: verbs uses %s\n", impl_->description.c_str());
}

VerbsContext::~VerbsContext() = default;

const std::string& VerbsContext::description() const { return impl_->description; }
const Api& VerbsContext::api() const { return *impl_->api; }
const std::vector<Device>& VerbsContext::devices() const { return impl_->devices; }
const std::vector<Port>& VerbsContext::ports() const { return impl_->ports; }
Memory& VerbsContext::memory() { return *impl_->memory; }

std::string VerbsContext::broken(int index) {
  std::lock_guard lock(impl_->events);
  for (size_t i = 0; i < impl_->devices.size(); i++) {
    ibv_async_event event{};
    while (impl_->api->get_async_event(impl_->devices[i].context, &event) == 0) {
      int type = event.event_type;
      if (type == kEventDeviceFatal || type == kEventCqError)
        impl_->broken[int(i)] = impl_->devices[i].name + ": " + impl_->api->event_type_str(type);
      impl_->api->ack_async_event(&event);
    }
  }
  auto at = impl_->broken.find(index);
  return at == impl_->broken.end() ? "" : at->second;
}

}  // namespace eager::comm
