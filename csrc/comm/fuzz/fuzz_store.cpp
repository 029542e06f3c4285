// The store's server, all commands: two members and a stranger say anything, in any order and cut
// anywhere.  Replies are whole frames, the table keeps its limits, nobody stays parked.
#include <algorithm>
#include <array>
#include <memory>

#include "comm/error.h"
#include "comm/store_session.h"
#include "input.h"

using namespace eager::comm;

namespace {

constexpr char kSecret[] = "secret";
constexpr size_t kSessions = 3, kStranger = 2;

StoreLimits limits() {
  StoreLimits l;
  l.key_bytes = 8;
  l.value_bytes = 200;
  l.total_bytes = 1000;
  return l;
}

std::string everything(StoreSession& session) {
  std::string out;
  while (session.output_bytes() > 0) {
    iovec piece;
    fuzz::require(session.output(&piece, 1) == 1, "output without a piece");
    const size_t n = std::min<size_t>(piece.iov_len, 7);  // sent in parts
    out.append(static_cast<const char*>(piece.iov_base), n);
    session.sent(n);
  }
  return out;
}

class Client {
 public:
  Client(StoreTable& table, uint64_t id)
      : session(std::make_unique<StoreSession>(table, id, kSecret)) {
    if (id == kStranger) return;
    Handshake handshake(Role::connector, {kSecret, kStoreContext, 0});
    for (int message = 0; message < 3; ++message) {
      const std::string bytes = message == 1 ? handshake.output() : everything(*session);
      if (message == 1)
        session->take(bytes.data(), bytes.size());
      else
        handshake.take(bytes.data(), bytes.size());
    }
    fuzz::require(handshake.done() && session->authenticated(), "a member is not let in");
  }

  void say(const std::string& bytes, size_t piece) {
    for (size_t at = 0; at < bytes.size() && session->wanted() > 0; at += piece) {
      const size_t n = std::min({piece, bytes.size() - at, session->wanted()});
      session->take(bytes.data() + at, n);
    }
  }

  void listen() {
    const std::string bytes = everything(*session);
    if (session->id() == kStranger) return;
    for (size_t at = 0; at < bytes.size();) {
      at += replies.take(bytes.data() + at, bytes.size() - at);
      if (!replies.complete()) continue;
      const Frame frame = replies.pop();
      fuzz::require(frame.type >= static_cast<uint8_t>(StoreReply::ok) &&
                        frame.type <= static_cast<uint8_t>(StoreReply::error),
                    "an unknown reply");
      fuzz::require(frame.payload.size() >= 4, "a reply without a number");
    }
    fuzz::require(!replies.partial(), "half a reply");
  }

  std::unique_ptr<StoreSession> session;
  FrameParser replies{1000};
};

std::string key(fuzz::Input& input) {
  const uint8_t choice = input.byte();
  return choice < 250 ? std::string(1, static_cast<char>('a' + choice % 4))
                      : std::string(choice - 246, 'k');
}

// A request with the right fields, if the input does not spoil them.
std::string request(fuzz::Input& input) {
  const uint8_t type = input.byte() % 11;
  Writer w;
  w.u32(input.byte());
  switch (static_cast<StoreRequest>(type)) {
    case StoreRequest::set:
      w.string(key(input)).string(input.piece(input.byte()));
      break;
    case StoreRequest::get:
    case StoreRequest::remove:
      w.string(key(input));
      break;
    case StoreRequest::add:
      w.string(key(input)).i64(static_cast<int8_t>(input.byte()) * (INT64_MAX / 128));
      break;
    case StoreRequest::compare_set:
      w.string(key(input)).string(input.piece(input.byte() % 3)).string(input.piece(input.byte()));
      break;
    case StoreRequest::wait:
    case StoreRequest::check: {
      const uint8_t n = input.byte() % 6;
      w.u32(n);
      for (uint8_t i = 0; i < n; ++i) w.string(key(input));
      break;
    }
    default:
      break;
  }
  std::string frame = encode_frame(type, w.bytes());
  const uint8_t spoil = input.byte();
  if (spoil >= 192) frame[spoil % frame.size()] ^= static_cast<char>(input.byte());
  return frame;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  StoreTable table(limits());
  std::array<std::unique_ptr<Client>, kSessions> clients;
  while (input.more()) {
    const uint8_t step = input.byte();
    const size_t who = step % kSessions;
    if (!clients[who]) clients[who] = std::make_unique<Client>(table, who);
    Client& client = *clients[who];
    const size_t piece = step & 128 ? 1 + input.byte() % 16 : 4096;
    client.say(step & 64 ? input.piece(input.byte()) : request(input), piece);
    fuzz::require(!clients[kStranger] || !clients[kStranger]->session->authenticated(),
                  "a stranger was let in");
    fuzz::require(table.bytes() <= table.limits().total_bytes, "the table grew above its limit");
    for (const uint64_t id : table.take_woken())
      fuzz::require(id != who && id != kStranger && clients[id], "somebody woke who did not wait");
    fuzz::require(client.session->output_bytes() <= 6 * longest_request(table.limits()),
                  "replies are piled up");
    if ((step & 32) == 0) client.listen();
    if (client.session->failed()) clients[who].reset();
  }
  for (auto& client : clients)
    if (client) client->listen();
  for (auto& client : clients) client.reset();
  fuzz::require(table.parked() == 0, "somebody stays parked");
  return 0;
}
