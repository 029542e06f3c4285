// A key-value store over TCP through which ranks find each other: the control channel's meeting
// place.  One rank (or a launcher) runs a StoreServer; everyone has a Store.  Semantics are those
// of torch.distributed.TCPStore.
//
// Both sides prove with HMAC-SHA256 over fresh nonces that they know `secret` before anything else
// is read (auth.h).  An empty secret turns that off and is accepted on loopback only.  Every
// length is checked before memory is taken for it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric.h"

namespace eager::comm {

struct StoreLimits {
  size_t key_bytes = 1024;
  size_t value_bytes = size_t(16) << 20;
  size_t total_bytes = size_t(1) << 30;
  size_t connections = 65536;
  size_t strangers = 1024;  // connections that have not proved themselves; the oldest makes way
  Duration handshake = std::chrono::seconds(10);  // strangers are dropped after this
};

class StoreServer {
 public:
  // Listens on host:port (port 0: any free one) and serves from a thread of its own.
  StoreServer(const std::string& host, uint16_t port, std::string secret, StoreLimits = {});
  ~StoreServer();
  uint16_t port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class Store {
 public:
  // Tries to connect until `timeout` has passed.  `timeout` is also that of later calls.
  // Throws Error(timeout), Error(authentication), Error(peer_lost, peer -1) when the server goes.
  Store(const std::string& host, uint16_t port, std::string secret, Duration timeout);
  ~Store();

  void set(const std::string& key, const std::string& value);
  std::string get(const std::string& key);  // waits for the key
  std::string get(const std::string& key, Duration timeout);
  int64_t add(const std::string& key, int64_t amount);  // a missing key counts as 0
  // Sets `desired` if the value is `expected` (or the key is missing and `expected` is empty);
  // returns the value afterwards.
  std::string compare_set(const std::string& key, const std::string& expected,
                          const std::string& desired);
  void wait(const std::vector<std::string>& keys, Duration timeout);
  bool check(const std::vector<std::string>& keys);  // all present?
  bool remove(const std::string& key);               // was it there?
  int64_t size();
  Duration timeout() const;
  void set_timeout(Duration);
  // The numeric address of this end of the connection: where those who reach the server's host can
  // reach this process.
  std::string local_host() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace eager::comm
