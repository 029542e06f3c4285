// The client.  A call has a connection to itself while it lasts, so that a get() that waits holds
// up nobody; connections are kept for later calls.
#include "store.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <mutex>
#include <thread>

#include "error.h"
#include "frame_io.h"
#include "store_session.h"

namespace eager::comm {
namespace {

constexpr size_t kIdle = 8;  // connections kept

Deadline after(Duration timeout) {
  const Duration longest = std::chrono::hours(24 * 365);
  return Clock::now() + std::clamp(timeout, Duration::zero(), longest);
}

// For people: keys may hold anything and may be long.
std::string quoted(const std::string& key) {
  std::string out = "'";
  for (const char c : key.substr(0, 80))
    out += std::isprint(static_cast<unsigned char>(c)) ? c : '?';
  return out + (key.size() > 80 ? "...'" : "'");
}

std::string first_line(const Error& e) {
  const std::string text = e.what();
  return text.substr(0, text.find('\n'));
}

struct Answer {
  uint32_t number;
  StoreReply type;
  std::string fields;
};

class Connection {
 public:
  explicit Connection(Socket socket) : socket_(std::move(socket)) {}

  // Returns the request's number.
  uint32_t send(const char* op, StoreRequest type, const Writer& fields, Deadline deadline) {
    Writer w;
    w.u32(++number_).raw(fields.bytes().data(), fields.bytes().size());
    send_frame(socket_, static_cast<uint8_t>(type), w.bytes(), deadline, op);
    return number_;
  }

  // Nothing when the deadline passed.
  std::optional<Answer> receive(const char* op, Deadline deadline) {
    try {
      const Frame frame = receive_frame(socket_, parser_, deadline, op);
      Reader r(frame.payload);
      const uint32_t number = r.u32();
      return Answer{number, static_cast<StoreReply>(frame.type), r.rest()};
    } catch (const Error& e) {
      if (e.kind != ErrorKind::timeout) throw;
      return std::nullopt;
    }
  }

 private:
  Socket socket_;
  FrameParser parser_{UINT32_MAX};  // an authenticated server's values are as long as it allows
  uint32_t number_ = 0;             // of the last request
};

}  // namespace

struct Store::Impl {
  // Tries again while nobody listens, if that may change; a proof that failed is final.
  std::unique_ptr<Connection> connect(Deadline deadline, bool first) const {
    for (;;) {
      std::string why;
      try {
        // A part of the time for each attempt: packets may have been lost on the way.
        const Deadline attempt = std::min(deadline, Clock::now() + std::chrono::seconds(10));
        Socket socket = Socket::connect(host_, port_, attempt);
        authenticate(socket, Role::connector, {secret_, kStoreContext, 0}, attempt);
        return std::make_unique<Connection>(std::move(socket));
      } catch (const Error& e) {
        if (e.kind == ErrorKind::authentication || e.kind == ErrorKind::invalid) throw;
        if (!first && e.kind == ErrorKind::system)
          fail(ErrorKind::peer_lost, "store", "the server is gone", "", first_line(e));
        why = first_line(e);
      }
      if (Clock::now() + kRetry >= deadline)
        fail(ErrorKind::timeout, "store", "no server answers",
             "one at " + host_ + ":" + std::to_string(port_), why,
             "a longer timeout, or see whether the first rank has started");
      std::this_thread::sleep_for(kRetry);
    }
  }

  std::unique_ptr<Connection> borrow(Deadline deadline) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        auto connection = std::move(idle_.back());
        idle_.pop_back();
        return connection;
      }
    }
    // However short the caller's patience: that is for the answer.
    return connect(std::max(deadline, Clock::now() + kGrace), false);
  }

  void give_back(std::unique_ptr<Connection> connection) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.size() < kIdle) idle_.push_back(std::move(connection));
  }

  // One request and its answer.  Nothing when the deadline passes while the server has it.
  std::optional<Answer> call(const char* op, StoreRequest type, const Writer& fields,
                             Deadline deadline) {
    auto connection = borrow(deadline);
    const uint32_t number = connection->send(op, type, fields, deadline);
    std::optional<Answer> answer = connection->receive(op, deadline);
    if (!answer) {
      // It may be on its way: what the server says to a cancellation settles that.
      const Deadline grace = Clock::now() + kGrace;
      connection->send(op, StoreRequest::cancel, Writer(), grace);
      answer = connection->receive(op, grace);
      if (!answer) return std::nullopt;  // the server hangs
      if (answer->number != number) {
        answer.reset();
      } else if (!connection->receive(op, grace)) {
        return answer;
      }
    } else if (answer->number != number) {
      fail(ErrorKind::protocol, op, "the server answers another request");
    }
    give_back(std::move(connection));
    return answer;
  }

  // The answer's fields; its type must be that one.
  std::string ask(const char* op, StoreRequest type, const Writer& fields, Deadline deadline,
                  StoreReply expected, const std::string& waiting_for = "an answer") {
    const size_t longest = longest_request(StoreLimits());
    if (fields.bytes().size() + 4 > longest)
      fail(ErrorKind::invalid, op, "the request is too long",
           "at most " + std::to_string(longest) + " bytes",
           std::to_string(fields.bytes().size()) + " bytes");
    const auto answer = call(op, type, fields, deadline);
    if (!answer)
      fail(ErrorKind::timeout, op, "time is over", waiting_for, "",
           "see whether the rank that sets it has failed, or a longer timeout");
    if (answer->type == StoreReply::error) {
      Reader r(answer->fields);
      fail(ErrorKind::invalid, op, r.string(answer->fields.size()));
    }
    if (answer->type != expected)
      fail(ErrorKind::protocol, op, "the server answers something else");
    return answer->fields;
  }

  int64_t number(const char* op, StoreRequest type, const Writer& fields) {
    const std::string payload = ask(op, type, fields, after(timeout()), StoreReply::number);
    Reader r(payload);
    const int64_t value = r.i64();
    r.end();
    return value;
  }

  Duration timeout() const { return Duration(timeout_.load(std::memory_order_relaxed)); }

  static constexpr auto kRetry = std::chrono::milliseconds(20);
  static constexpr Duration kGrace = std::chrono::seconds(1);  // for what takes no time usually

  const std::string host_;
  const uint16_t port_;
  const std::string secret_;
  std::atomic<Duration::rep> timeout_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Connection>> idle_;
};

namespace {

// What a server with default limits accepts; it would hang up on more.
void check_key(const char* op, const std::string& key) {
  const size_t longest = StoreLimits().key_bytes;
  if (key.size() > longest)
    fail(ErrorKind::invalid, op, "the key is too long",
         "at most " + std::to_string(longest) + " bytes", std::to_string(key.size()) + " bytes");
}

void check_value(const char* op, const std::string& value) {
  const size_t longest = StoreLimits().value_bytes;
  if (value.size() > longest)
    fail(ErrorKind::invalid, op, "the value is too long",
         "at most " + std::to_string(longest) + " bytes", std::to_string(value.size()) + " bytes",
         "a collective, or a file");
}

Writer keys_of(const char* op, const std::vector<std::string>& keys) {
  if (keys.size() > kStoreKeys)
    fail(ErrorKind::invalid, op, "too many keys", "at most " + std::to_string(kStoreKeys),
         std::to_string(keys.size()));
  Writer w;
  w.u32(static_cast<uint32_t>(keys.size()));
  for (const std::string& key : keys) {
    check_key(op, key);
    w.string(key);
  }
  return w;
}

}  // namespace

Store::Store(const std::string& host, uint16_t port, std::string secret, Duration timeout)
    : impl_(new Impl{host, port, std::move(secret), {timeout.count()}, {}, {}}) {
  impl_->give_back(impl_->connect(after(timeout), true));
}

Store::~Store() = default;

void Store::set(const std::string& key, const std::string& value) {
  const char* op = "store.set";
  check_key(op, key);
  check_value(op, value);
  Writer w;
  w.string(key).string(value);
  impl_->ask(op, StoreRequest::set, w, after(timeout()), StoreReply::ok);
}

std::string Store::get(const std::string& key) { return get(key, timeout()); }

std::string Store::get(const std::string& key, Duration timeout) {
  const char* op = "store.get";
  check_key(op, key);
  return impl_->ask(op, StoreRequest::get, Writer().string(key), after(timeout), StoreReply::value,
                    "the key " + quoted(key));
}

int64_t Store::add(const std::string& key, int64_t amount) {
  const char* op = "store.add";
  check_key(op, key);
  return impl_->number(op, StoreRequest::add, Writer().string(key).i64(amount));
}

std::string Store::compare_set(const std::string& key, const std::string& expected,
                               const std::string& desired) {
  const char* op = "store.compare_set";
  check_key(op, key);
  check_value(op, expected);
  check_value(op, desired);
  const Writer w = Writer().string(key).string(expected).string(desired);
  return impl_->ask(op, StoreRequest::compare_set, w, after(timeout()), StoreReply::value);
}

void Store::wait(const std::vector<std::string>& keys, Duration timeout) {
  const char* op = "store.wait";
  std::string names;
  for (size_t i = 0; i < std::min<size_t>(keys.size(), 8); ++i)
    names += (i ? ", " : "") + quoted(keys[i]);
  if (keys.size() > 8) names += ", ...";
  impl_->ask(op, StoreRequest::wait, keys_of(op, keys), after(timeout), StoreReply::ok,
             "the keys " + names);
}

bool Store::check(const std::vector<std::string>& keys) {
  const char* op = "store.check";
  return impl_->number(op, StoreRequest::check, keys_of(op, keys)) != 0;
}

bool Store::remove(const std::string& key) {
  const char* op = "store.remove";
  check_key(op, key);
  return impl_->number(op, StoreRequest::remove, Writer().string(key)) != 0;
}

int64_t Store::size() { return impl_->number("store.size", StoreRequest::size, Writer()); }

Duration Store::timeout() const { return impl_->timeout(); }
void Store::set_timeout(Duration timeout) { impl_->timeout_ = timeout.count(); }
std::string Store::local_host() const { return address_towards(impl_->host_, impl_->port_); }

}  // namespace eager::comm
