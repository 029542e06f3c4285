// Frames over a blocking socket.
#pragma once
#include "frame.h"
#include "socket.h"

namespace eager::comm {

void send_frame(Socket&, uint8_t type, const std::string& payload, Deadline,
                const char* op = "send");
// The next frame; `parser` keeps the bytes of one that has not come whole when the deadline
// passes.  Reads nothing beyond the frame.  Throws as Socket::read, and Error(protocol).
Frame receive_frame(Socket&, FrameParser& parser, Deadline, const char* op = "receive");

}  // namespace eager::comm
