// Frames: what is written is read, however the stream is cut; what is wrong is refused.
#include "comm/frame.h"
#include "test.h"

using namespace eager::comm;

namespace {

std::vector<Frame> parse(const std::string& stream, size_t piece, size_t limit = 1000) {
  FrameParser parser(limit);
  std::vector<Frame> frames;
  for (size_t at = 0; at < stream.size(); at += piece) {
    const char* data = stream.data() + at;
    size_t n = std::min(piece, stream.size() - at);
    while (n > 0) {
      const size_t used = parser.take(data, n);
      data += used, n -= used;
      if (parser.complete()) frames.push_back(parser.pop());
    }
  }
  CHECK(!parser.partial());
  return frames;
}

}  // namespace

TEST(frame_survives_any_cut) {
  const std::string stream =
      encode_frame(1, "") + encode_frame(255, std::string(1000, 'x')) + encode_frame(7, "abc");
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    const auto frames = parse(stream, piece);
    CHECK(frames.size() == 3);
    CHECK(frames[0].type == 1 && frames[0].payload.empty());
    CHECK(frames[1].type == 255 && frames[1].payload == std::string(1000, 'x'));
    CHECK(frames[2].type == 7 && frames[2].payload == "abc");
  }
}

TEST(frame_layout_is_fixed) {
  const std::string expected("EJC1\x05\0\0\0\x02\0\0\0hi", 14);
  CHECK(encode_frame(5, "hi") == expected);
  CHECK(frame_header(5, 2) == expected.substr(0, kFrameHeader));
}

TEST(frame_with_a_wrong_header_is_refused) {
  const std::string good = encode_frame(5, "hi");
  for (const size_t at : {0u, 1u, 2u, 3u, 5u, 6u, 7u}) {
    std::string bad = good;
    bad[at] ^= 1;
    CHECK_FAILS(protocol, parse(bad, bad.size()));
    CHECK_FAILS(protocol, parse(bad, 1));
  }
  CHECK_FAILS(protocol, parse(good, 1, 1));  // longer than the limit
  CHECK(parse(good, 1, 2).size() == 1);
}

TEST(frame_too_long_is_refused_by_its_header_alone) {
  FrameParser parser(1 << 20);
  const std::string header = frame_header(1, (1 << 20) + 1);
  CHECK_FAILS(protocol, parser.take(header.data(), header.size()));
  CHECK_FAILS(invalid, frame_header(1, size_t(1) << 32));
}

TEST(frame_parser_says_what_is_missing) {
  FrameParser parser(100);
  CHECK(parser.missing() == kFrameHeader && !parser.partial() && !parser.complete());
  const std::string bytes = encode_frame(1, "abcdef") + "next";
  CHECK(parser.take(bytes.data(), 5) == 5);
  CHECK(parser.missing() == kFrameHeader - 5 && parser.partial());
  CHECK_FAILS(invalid, parser.pop());
  CHECK(parser.take(bytes.data() + 5, 8) == 8);
  CHECK(parser.missing() == 5);
  CHECK(parser.take(bytes.data() + 13, bytes.size() - 13) == 5);  // and not a byte of the next
  CHECK(parser.complete() && !parser.partial());
  CHECK(parser.take("x", 1) == 0);
  CHECK(parser.pop().payload == "abcdef");
  CHECK(parser.missing() == kFrameHeader);
}

TEST(fields_come_back) {
  const std::string binary("\0\xff", 2);
  Writer w;
  w.u8(200).u16(60000).u32(4000000000u).u64(UINT64_MAX - 1).i64(-5).string(binary).raw("xyz", 3);
  Reader r(w.bytes());
  CHECK(r.u8() == 200 && r.u16() == 60000 && r.u32() == 4000000000u);
  CHECK(r.u64() == UINT64_MAX - 1 && r.i64() == -5);
  CHECK(r.string(2) == binary);
  CHECK_FAILS(protocol, r.end());
  char raw[2];
  r.raw(raw, 2);
  CHECK(raw[0] == 'x' && raw[1] == 'y');
  CHECK(r.left() == 1 && r.rest() == "z");
  r.end();
  CHECK(Writer().u32(0x01020304).bytes() == "\x04\x03\x02\x01");  // little-endian everywhere
}

TEST(reader_never_reads_beyond_the_end) {
  const std::string bytes(7, '\xff');
  CHECK_FAILS(protocol, Reader(bytes).u64());
  CHECK_FAILS(protocol, Reader(bytes).string(SIZE_MAX));  // 4 GiB announced, 3 bytes there
  char out[8];
  CHECK_FAILS(protocol, Reader(bytes).raw(out, 8));
  CHECK_FAILS(protocol, Reader("", 0).u8());
  const std::string text = Writer().string("abc").take();
  CHECK_FAILS(protocol, Reader(text).string(2));
  CHECK(Reader(text).string(3) == "abc");
  for (size_t n = 0; n < text.size(); ++n) CHECK_FAILS(protocol, Reader(text.data(), n).string(3));
}
