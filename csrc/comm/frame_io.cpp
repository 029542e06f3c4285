#include "frame_io.h"

#include <algorithm>
#include <array>

#include "error.h"

namespace eager::comm {

void send_frame(Socket& socket, uint8_t type, const std::string& payload, Deadline deadline,
                const char* op) {
  const std::string bytes = encode_frame(type, payload);
  socket.write(bytes.data(), bytes.size(), deadline, op);
}

Frame receive_frame(Socket& socket, FrameParser& parser, Deadline deadline, const char* op) {
  std::array<char, 65536> buffer;
  while (!parser.complete()) {
    const size_t wanted = std::min(parser.missing(), buffer.size());
    const size_t n = socket.read_some(buffer.data(), wanted, deadline, op);
    if (n == 0) fail(ErrorKind::timeout, op, "no answer in time");
    parser.take(buffer.data(), n);
  }
  return parser.pop();
}

}  // namespace eager::comm
