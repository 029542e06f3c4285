#include "transports.h"

#include "tcp.h"
#include "verbs.h"
#include "verbs_device.h"

namespace eager::comm {

Choice choose(const Abilities& lower, const Abilities& higher, bool local) {
  if (!lower.forced.empty() && !higher.forced.empty() && lower.forced != higher.forced)
    fail(ErrorKind::invalid, "join", "two ranks demand different transports", "one transport",
         lower.forced + " and " + higher.forced);
  const std::string& forced = lower.forced.empty() ? higher.forced : lower.forced;
  const bool verbs = (lower.verbs & higher.verbs) != 0;
  const auto why_no_verbs = [&]() -> std::string {
    if (!lower.verbs) return lower.verbs_text;
    if (!higher.verbs) return higher.verbs_text;
    return "one side has Ethernet ports, the other InfiniBand";
  };
  if (forced == "shm" && !local)
    fail(ErrorKind::invalid, "join", "shared memory is demanded, but the ranks do not share a host",
         "", "", "leave the choice of the transport open, or demand tcp or verbs");
  if (forced == "verbs" && !verbs)
    fail(ErrorKind::invalid, "join", "verbs is demanded, but cannot be had: " + why_no_verbs());
  if (!forced.empty()) return {forced, "demanded"};
  if (local) return {"shm", "same host"};
  if (verbs) return {"verbs", "both have ports: " + lower.verbs_text + "; " + higher.verbs_text};
  return {"tcp", "not on one host, and no verbs: " + why_no_verbs()};
}

Transports::Transports(const MeshOptions& options) : size_(options.size) {
  abilities_.forced = options.transport;
  const std::string& f = options.transport;
  if (!f.empty() && f != "shm" && f != "tcp" && f != "verbs")
    fail(ErrorKind::invalid, "join", "no such transport", "shm, tcp or verbs", f);
  if (f == "shm" || f == "tcp") {  // no device is opened for nothing
    abilities_.verbs_text = f + " is demanded";
    return;
  }
  try {
    verbs_ = std::make_shared<VerbsContext>(options.devices);
  } catch (const Error& error) {
    if (f == "verbs" || error.kind == ErrorKind::invalid) throw;
    abilities_.verbs_text = error.what();
    return;
  }
  abilities_.verbs_text = verbs_->description();
  for (const verbs::Port& port : verbs_->ports()) abilities_.verbs |= port.ethernet ? 1 : 2;
}

std::unique_ptr<PendingLink> Transports::prepare(const std::string& transport,
                                                 const LinkOptions& options,
                                                 std::shared_ptr<PeerRegions> regions) const {
  if (transport == "shm") return prepare_shm(options, size_, std::move(regions));
  if (transport == "verbs") return prepare_verbs(options, verbs_);
  return prepare_tcp(options);
}

}  // namespace eager::comm
