// What comes over the sockets of a TCP link, without the sockets: bytes in, memory and counters
// out.
//
// A put travels as one or more pieces, each a header and its bytes, over any of the streams.  Bytes
// go straight to where they belong: want() says where the next bytes of a stream are to be read
// to, take() that they are there.  Only what comes along with a header is copied, from a buffer of
// a few kilobytes that lets one read fetch many small puts.
//
// Pieces of different puts overtake each other when there are several streams; counters do not:
// that of a put advances when it is complete and all earlier ones are.  At most kTcpWindow puts
// are followed at a time.  A stream that is further ahead has to wait; every stream carries its
// pieces in the order of their puts, so the oldest put is never behind such a stream.
#pragma once
#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "counters.h"
#include "fabric.h"

namespace eager::comm {

// Before each piece, little-endian.
struct TcpHeader {
  uint32_t magic;
  uint32_t region;    // of the receiver; of no meaning when the put has no bytes
  uint64_t offset;    // in the region, in bytes
  uint64_t length;    // of this piece, in bytes
  uint64_t sequence;  // of the put: 1, 2, ... in each direction
  uint32_t counter;   // to advance, or kNoCounter
  uint32_t pieces;    // of which the put consists
};
static_assert(sizeof(TcpHeader) == 40);
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "TcpHeader is sent as it lies in memory: little-endian"
#endif

inline constexpr uint32_t kTcpMagic = 0x31504345;  // "ECP1"
inline constexpr uint32_t kTcpWindow = 1024;       // puts
inline constexpr uint32_t kTcpPieces = 1u << 20;   // of one put, at most

// Not thread-safe.  After an Error only destruction is allowed.
class TcpReceiver {
 public:
  TcpReceiver(Counters* counters, int peer, int streams);

  void attach(const Region&);
  // The region is not touched any more.  Bytes on their way to it are an Error(protocol) later.
  void detach(uint32_t id);

  // Fills in one or two ranges for the next bytes of the stream; their number.  0: the stream is
  // too far ahead; ask again after a take() of another stream.
  int want(int stream, iovec (&to)[2]);
  // The first `n` bytes of these ranges have come.  Throws Error(protocol) when a header among
  // them is not one that a correct peer sends.
  void take(int stream, size_t n);
  bool ahead(int stream) const { return streams_[size_t(stream)].ahead; }
  // Between two pieces: a stream that ends here lost nothing that it had begun.
  bool between(int stream) const;

 private:
  struct Stream {
    std::array<std::byte, 8192> buffer;
    size_t begin = 0, end = 0;  // what of it is not yet parsed
    std::byte* to = nullptr;    // where the rest of the current piece goes
    size_t left = 0;
    uint32_t region = 0;    // that `to` lies in
    uint64_t sequence = 0;  // of the current or last piece
    bool ahead = false;     // waits with a header for the window
  };
  struct Put {
    uint32_t pieces = 0;  // 0: nothing of it has come
    uint32_t left = 0;
    uint32_t counter = 0;
    uint32_t begun = 0;
  };

  void parse(Stream&);
  bool begin(Stream&, const TcpHeader&);
  void finish(Stream&);
  [[noreturn]] void refuse(const std::string& problem, const std::string& expected,
                           const std::string& given) const;

  Counters* counters_;
  int peer_;
  std::vector<Stream> streams_;
  std::unordered_map<uint32_t, Region> regions_;
  std::vector<Put> puts_;  // by sequence modulo kTcpWindow
  uint64_t next_ = 1;      // the oldest put that is not complete
};

}  // namespace eager::comm
