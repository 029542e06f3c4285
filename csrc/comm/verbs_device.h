// Which devices and ports links use.
#pragma once
#include <string>
#include <vector>

#include "verbs_api.h"

namespace eager::comm::verbs {

inline constexpr int kMaxRails = 4;  // ports used at once; Target::keys has room for so many

struct Device {
  std::string name;
  ibv_context* context;
  ibv_pd* pd;
  ibv_device_attr limits;
};

struct Port {
  int device;      // index into VerbsContext::devices()
  uint8_t number;  // from 1
  bool ethernet;   // RoCE; else InfiniBand
  ibv_port_attr attributes;
  int gid_index;
  ibv_gid gid;
  std::string text;
};

// "mlx5_0:1:3": what a user asked for; -1: not said.
struct Choice {
  std::string device;
  int port = -1, gid = -1;
};
// Throws Error(invalid).
std::vector<Choice> parse_choices(const std::string& devices);

inline int mtu_bytes(int code) { return 128 << code; }

}  // namespace eager::comm::verbs
