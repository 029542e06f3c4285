#include "store_session.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "error.h"

namespace eager::comm {
namespace {

// What an entry costs beyond its bytes, so that many empty ones fill the table too.
constexpr size_t kEntry = 128;

std::optional<int64_t> integer(const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end) return std::nullopt;
  return value;
}

}  // namespace

size_t longest_request(const StoreLimits& limits) {
  return 64 + limits.key_bytes + 2 * limits.value_bytes;
}

// --- the table -----------------------------------------------------------------------------------

StoreTable::Value StoreTable::find(const std::string& key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : it->second;
}

bool StoreTable::set(const std::string& key, std::string value) {
  auto it = values_.find(key);
  const size_t before = it == values_.end() ? 0 : kEntry + key.size() + it->second->size();
  const size_t after = kEntry + key.size() + value.size();
  if (bytes_ - before + after > limits_.total_bytes) return false;
  auto shared = std::make_shared<const std::string>(std::move(value));
  if (it == values_.end())
    values_.emplace(key, std::move(shared));
  else
    it->second = std::move(shared);
  bytes_ = bytes_ - before + after;
  auto waiting = parked_.extract(key);
  if (waiting.empty()) return true;
  for (StoreSession* session : waiting.mapped()) {
    session->key_was_set();
    if (session->output_bytes() > 0 || session->failed()) woken_.push_back(session->id());
  }
  return true;
}

bool StoreTable::remove(const std::string& key) {
  const auto it = values_.find(key);
  if (it == values_.end()) return false;
  bytes_ -= kEntry + key.size() + it->second->size();
  values_.erase(it);
  return true;
}

void StoreTable::park(StoreSession& session, const std::string& key) {
  parked_[key].insert(&session);
}

void StoreTable::unpark(StoreSession& session, const std::string& key) {
  const auto it = parked_.find(key);
  if (it == parked_.end()) return;
  it->second.erase(&session);
  if (it->second.empty()) parked_.erase(it);
}

// --- a session -----------------------------------------------------------------------------------

StoreSession::StoreSession(StoreTable& table, uint64_t id, const std::string& secret)
    : table_(table),
      id_(id),
      handshake_(Role::acceptor, Credentials{secret, kStoreContext, 0}),
      parser_(longest_request(table.limits())) {
  send(std::make_shared<const std::string>(handshake_.output()));
}

StoreSession::~StoreSession() { cancel(); }

size_t StoreSession::wanted() const {
  if (failed_) return 0;
  return handshake_.done() ? size_t(64) << 10 : handshake_.wanted();
}

void StoreSession::take(const void* data, size_t length) {
  const auto* at = static_cast<const char*>(data);
  try {
    while (length > 0 && !failed_) {
      size_t used;
      if (!handshake_.done()) {
        used = handshake_.take(at, length);
        const std::string out = handshake_.output();
        if (!out.empty()) send(std::make_shared<const std::string>(out));
        if (handshake_.failed()) fail(handshake_.why());
      } else {
        used = parser_.take(at, length);
        if (parser_.complete()) request(parser_.pop());
      }
      at += used, length -= used;
    }
  } catch (const Error& e) {
    fail(e.what());
  }
}

void StoreSession::fail(const std::string& why) {
  cancel();
  failed_ = true;
  why_ = why;
}

std::vector<std::string> StoreSession::read_keys(Reader& r) const {
  const uint32_t n = r.u32();
  if (n > kStoreKeys) comm::fail(ErrorKind::protocol, "store", "too many keys in one request");
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < n; ++i) keys.push_back(r.string(table_.limits().key_bytes));
  r.end();
  return keys;
}

void StoreSession::request(const Frame& frame) {
  cancel();
  const StoreLimits& limits = table_.limits();
  Reader r(frame.payload);
  number_ = r.u32();
  const auto type = static_cast<StoreRequest>(frame.type);
  std::string key;
  if (type == StoreRequest::set || type == StoreRequest::get || type == StoreRequest::add ||
      type == StoreRequest::compare_set || type == StoreRequest::remove)
    key = r.string(limits.key_bytes);
  switch (type) {
    case StoreRequest::set: {
      std::string value = r.string(limits.value_bytes);
      r.end();
      return store(key, std::move(value), nullptr);
    }
    case StoreRequest::get:
      r.end();
      awaited_ = {std::move(key)};
      wants_value_ = true;
      return park_or_answer();
    case StoreRequest::add: {
      const int64_t amount = r.i64();
      r.end();
      const StoreTable::Value old = table_.find(key);
      const std::optional<int64_t> number = old ? integer(*old) : 0;
      int64_t sum;
      if (!number) return reply_error("the value is not an integer");
      if (__builtin_add_overflow(*number, amount, &sum))
        return reply_error("the sum does not fit 64 bits");
      if (!table_.set(key, std::to_string(sum))) return reply_error("the store is full");
      return reply_number(sum);
    }
    case StoreRequest::compare_set: {
      std::string expected = r.string(limits.value_bytes);
      std::string desired = r.string(limits.value_bytes);
      r.end();
      const StoreTable::Value old = table_.find(key);
      if (old ? *old != expected : !expected.empty())
        return reply_value(old ? old : std::make_shared<const std::string>(std::move(expected)));
      const auto answer = std::make_shared<const std::string>(desired);
      return store(key, std::move(desired), answer);
    }
    case StoreRequest::wait:
      awaited_ = read_keys(r);
      wants_value_ = false;
      return park_or_answer();
    case StoreRequest::check: {
      const auto keys = read_keys(r);
      return reply_number(std::all_of(keys.begin(), keys.end(), [&](const std::string& k) {
        return table_.find(k) != nullptr;
      }));
    }
    case StoreRequest::remove:
      r.end();
      return reply_number(table_.remove(key));
    case StoreRequest::size:
      r.end();
      return reply_number(static_cast<int64_t>(table_.size()));
    case StoreRequest::cancel:  // which every request does
      r.end();
      return reply(StoreReply::ok, Writer());
  }
  fail("an unknown request");
}

// Parked on the first missing key; a key that comes begins the search again, because others may
// have gone meanwhile.
void StoreSession::park_or_answer() {
  for (next_ = 0; next_ < awaited_.size(); ++next_)
    if (!table_.find(awaited_[next_])) return table_.park(*this, awaited_[next_]);
  const std::vector<std::string> keys = std::exchange(awaited_, {});
  if (wants_value_)
    reply_value(table_.find(keys[0]));
  else
    reply(StoreReply::ok, Writer());
}

// Called in the midst of another session's request, which must not suffer.
void StoreSession::key_was_set() {
  try {
    park_or_answer();
  } catch (const std::exception& e) {
    fail(e.what());
  }
}

void StoreSession::cancel() {
  if (awaited_.empty()) return;
  table_.unpark(*this, awaited_[next_]);
  awaited_.clear();
}

// --- replies -------------------------------------------------------------------------------------

void StoreSession::store(const std::string& key, std::string value,
                         const StoreTable::Value& answer) {
  if (!table_.set(key, std::move(value))) return reply_error("the store is full");
  if (answer)
    reply_value(answer);
  else
    reply(StoreReply::ok, Writer());
}

void StoreSession::reply(StoreReply type, const Writer& fields) {
  Writer w;
  w.u32(number_).raw(fields.bytes().data(), fields.bytes().size());
  send(std::make_shared<const std::string>(encode_frame(static_cast<uint8_t>(type), w.bytes())));
}

void StoreSession::reply_number(int64_t v) { reply(StoreReply::number, Writer().i64(v)); }

void StoreSession::reply_error(const std::string& text) {
  reply(StoreReply::error, Writer().string(text));
}

void StoreSession::reply_value(const StoreTable::Value& value) {
  Writer number;
  number.u32(number_);
  std::string head = frame_header(static_cast<uint8_t>(StoreReply::value), 4 + value->size());
  head += number.bytes();
  send(std::make_shared<const std::string>(std::move(head)));
  send(value);
}

void StoreSession::send(StoreTable::Value bytes) {
  if (failed_ || bytes->empty()) return;
  output_bytes_ += bytes->size();
  output_.push_back(std::move(bytes));
  // A client reads each reply before its next request, or a few of those that it cancelled.
  if (output_bytes_ > 4 * longest_request(table_.limits()))
    fail("replies are requested and not read");
}

int StoreSession::output(iovec* pieces, int n) const {
  int filled = 0;
  size_t skip = first_sent_;
  for (const StoreTable::Value& piece : output_) {
    if (filled == n) break;
    pieces[filled].iov_base = const_cast<char*>(piece->data() + skip);
    pieces[filled++].iov_len = piece->size() - skip;
    skip = 0;
  }
  return filled;
}

void StoreSession::sent(size_t bytes) {
  output_bytes_ -= bytes;
  bytes += first_sent_;
  while (!output_.empty() && bytes >= output_.front()->size()) {
    bytes -= output_.front()->size();
    output_.pop_front();
  }
  first_sent_ = bytes;
}

}  // namespace eager::comm
