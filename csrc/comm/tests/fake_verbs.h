// A libibverbs made of threads: what tests the link where there is no device, and brings about
// what real devices do seldom.  Every queue pair has a thread that carries out its work after
// random delays, so that rails overtake each other.  Checks what a device checks: keys, ranges,
// access, queue lengths, states.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/verbs_api.h"

namespace eager::comm::fake {

struct Gid {
  std::string address;  // IPv6 text; "" for an empty entry
  std::string type;     // as sysfs says it: "RoCE v2", "IB/RoCE v1"
};

struct Device {
  std::string name;
  std::vector<Gid> gids = {{"fe80::1", "IB/RoCE v1"}, {"::ffff:10.0.0.1", "RoCE v2"}};
  bool ethernet = true, active = true;
  int transport = verbs::kTransportInfiniBand;
  int max_inline = 128, max_work = 64;
  uint32_t max_message = 1 << 20;
  bool registers = true;  // false: refuses memory that is not given at the start
};

// Only one at a time: the functions of an Api have no state.
class Verbs {
 public:
  explicit Verbs(std::vector<Device> devices);
  ~Verbs();
  std::shared_ptr<const verbs::Api> api() const { return api_; }

  void refuse_registration(bool);  // from now on
  void cut();                      // all connections break
  void device_fatal(int index);    // an asynchronous event
  uint64_t receiver_not_ready() const;
  uint64_t registered() const;       // ranges now
  uint64_t bytes(int device) const;  // written through it
  uint64_t completions() const;      // of writes, that were signaled
  uint64_t writes() const;

 private:
  std::shared_ptr<const verbs::Api> api_;
};

}  // namespace eager::comm::fake
