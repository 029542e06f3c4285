// Links over RDMA: InfiniBand and RoCE through libibverbs, opened at run time (verbs_api.h).
//
// Per peer and port there is one reliable connected queue pair, a "rail"; up to four.  A put is an
// RDMA WRITE from the source memory into the target's; its counter is the immediate of the last
// one.  Large puts are striped over the rails.  verbs.cpp tells the protocol.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "link.h"

namespace eager::comm {

namespace verbs {
class Api;
class Memory;
struct Device;
struct Port;
}  // namespace verbs

// What all verbs links of one mesh share: opened devices, registered memory.  Links keep it alive.
// Thread-safe.
class VerbsContext {
 public:
  // `devices` as MeshOptions::devices: names with optional port and index of the GID,
  // "mlx5_0,mlx5_1:1,rxe0:1:3"; empty: every active port, at most four.
  // Throws Error(system) that says why when there is no library, device or active port;
  // Error(invalid) for a list that cannot be read or names what is not there.
  explicit VerbsContext(const std::string& devices);
  // With another implementation of the library: tests.
  VerbsContext(const std::string& devices, std::shared_ptr<const verbs::Api>);
  ~VerbsContext();

  // The ports chosen, for people: "rxe0 port 1 (Ethernet, GID 1 RoCE v2 10.9.0.1, MTU 4096)".
  const std::string& description() const;

  const verbs::Api& api() const;
  const std::vector<verbs::Device>& devices() const;
  const std::vector<verbs::Port>& ports() const;
  verbs::Memory& memory();
  // Reads the devices' asynchronous events.  Empty while device `index` works, else what broke it.
  std::string broken(int device);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Throws Error(system) when the device refuses.
std::unique_ptr<PendingLink> prepare_verbs(const LinkOptions&, std::shared_ptr<VerbsContext>);

}  // namespace eager::comm
