// The store's server without its sockets: the table, and one session per connection as a state
// machine that bytes go into and replies come out of.  Not thread-safe: one thread owns them all.
//
// Requests and replies are frames (frame.h) whose payload begins with the request's number; a
// reply repeats it.  A connection has one request at a time: a new one, such as `cancel`, ends one
// that still waits for keys.
//
//   set           key, value                 ok
//   get           key                        value      once the key is there
//   add           key, i64                   number
//   compare_set   key, expected, desired     value
//   wait          u32 n, n keys              ok         once all are there
//   check         u32 n, n keys              number     1: all are there
//   remove        key                        number     1: it was there
//   size          -                          number
//   cancel        -                          ok
//
// Strings are u32 length and bytes, but the value of a `value` reply is the rest of its payload.
// Any request may be answered by `error` with a text, e.g. when the table is full.
#pragma once
#include <sys/uio.h>

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "auth.h"
#include "frame.h"
#include "store.h"

namespace eager::comm {

enum class StoreRequest : uint8_t {
  set = 1,
  get,
  add,
  compare_set,
  wait,
  check,
  remove,
  size,
  cancel,
};
enum class StoreReply : uint8_t { ok = 128, value, number, error };

inline constexpr size_t kStoreKeys = 65536;  // of one wait or check
// The longest payload of a request.
size_t longest_request(const StoreLimits&);
inline constexpr char kStoreContext[] = "store";

class StoreSession;

class StoreTable {
 public:
  // Shared with the replies on their way, so that a large value exists once however many read it.
  using Value = std::shared_ptr<const std::string>;

  explicit StoreTable(const StoreLimits& limits) : limits_(limits) {}

  const StoreLimits& limits() const { return limits_; }
  Value find(const std::string& key) const;  // null: missing
  // False, and no change, when the table would grow above its limit.
  bool set(const std::string& key, std::string value);
  bool remove(const std::string& key);
  size_t size() const { return values_.size(); }
  size_t bytes() const { return bytes_; }  // what counts against total_bytes

  void park(StoreSession&, const std::string& key);
  void unpark(StoreSession&, const std::string& key);
  size_t parked() const { return parked_.size(); }  // keys somebody waits for

  // Sessions that got output through somebody else's request, since the last call.
  std::vector<uint64_t> take_woken() { return std::exchange(woken_, {}); }

 private:
  StoreLimits limits_;
  std::unordered_map<std::string, Value> values_;
  std::unordered_map<std::string, std::unordered_set<StoreSession*>> parked_;
  std::vector<uint64_t> woken_;
  size_t bytes_ = 0;
};

class StoreSession {
 public:
  // The session of one connection; `id` is what take_woken() calls it.
  StoreSession(StoreTable&, uint64_t id, const std::string& secret);
  ~StoreSession();
  StoreSession(const StoreSession&) = delete;
  StoreSession& operator=(const StoreSession&) = delete;

  bool authenticated() const { return handshake_.done(); }
  // How many bytes to read at most: of a stranger, what its handshake needs and no more.
  size_t wanted() const;
  // Takes bytes; all of them, if there are not more than wanted().
  void take(const void* data, size_t length);
  // The connection is to be dropped, once what output there is has been tried.
  bool failed() const { return failed_; }
  const std::string& why() const { return why_; }

  // What is to be sent: fills up to n pieces and returns how many; sent() removes bytes.
  int output(iovec* pieces, int n) const;
  void sent(size_t bytes);
  size_t output_bytes() const { return output_bytes_; }

  uint64_t id() const { return id_; }
  void key_was_set();  // the table's: the key it is parked on is there

 private:
  void request(const Frame&);
  void park_or_answer();
  void cancel();
  std::vector<std::string> read_keys(Reader&) const;

  void reply(StoreReply, const Writer& fields);
  void reply_number(int64_t);
  void reply_value(const StoreTable::Value&);
  void reply_error(const std::string& text);
  void store(const std::string& key, std::string value, const StoreTable::Value& answer);
  void send(StoreTable::Value);
  void fail(const std::string& why);

  StoreTable& table_;
  const uint64_t id_;
  Handshake handshake_;
  FrameParser parser_;
  uint32_t number_ = 0;  // of the request that is answered or waits

  std::vector<std::string> awaited_;  // keys; empty: nothing waits
  size_t next_ = 0;                   // the one it is parked on
  bool wants_value_ = false;          // get, not wait

  std::deque<StoreTable::Value> output_;
  size_t first_sent_ = 0;  // bytes of the first piece that are sent
  size_t output_bytes_ = 0;
  bool failed_ = false;
  std::string why_;
};

}  // namespace eager::comm
