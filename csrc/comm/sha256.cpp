#include "sha256.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace eager::comm {
namespace {

// FIPS 180-4, 4.2.2: fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotate(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

}  // namespace

void Sha256::block(const uint8_t* data) {
  uint32_t w[64];
  for (int i = 0; i < 16; ++i)
    w[i] = uint32_t(data[4 * i]) << 24 | uint32_t(data[4 * i + 1]) << 16 |
           uint32_t(data[4 * i + 2]) << 8 | uint32_t(data[4 * i + 3]);
  for (int i = 16; i < 64; ++i) {
    const uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (int i = 0; i < 64; ++i) {
    const uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
    const uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1;
    d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> add{a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state_[i] += add[i];
}

void Sha256::update(const void* data, size_t length) {
  if (length == 0) return;
  const auto* at = static_cast<const uint8_t*>(data);
  const size_t held = length_ % 64;
  length_ += length;
  if (held > 0) {
    const size_t n = std::min(length, 64 - held);
    std::memcpy(tail_.data() + held, at, n);
    at += n, length -= n;
    if (held + n < 64) return;
    block(tail_.data());
  }
  for (; length >= 64; at += 64, length -= 64) block(at);
  if (length > 0) std::memcpy(tail_.data(), at, length);
}

Digest Sha256::finish() {
  const uint64_t bits = length_ * 8;
  const size_t held = length_ % 64;
  uint8_t padding[72] = {0x80};
  const size_t zeros = (held < 56 ? 56 : 120) - held;  // the one bit among them
  for (size_t i = 0; i < 8; ++i) padding[zeros + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(padding, zeros + 8);
  Digest out;
  for (size_t i = 0; i < 32; ++i)
    out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

Digest sha256(const void* data, size_t length) {
  Sha256 hash;
  hash.update(data, length);
  return hash.finish();
}

Digest hmac_sha256(const std::string& key, const void* data, size_t length) {
  std::array<uint8_t, 64> block{};
  if (key.size() > block.size()) {
    const Digest digest = sha256(key.data(), key.size());
    std::copy(digest.begin(), digest.end(), block.begin());
  } else {
    std::copy(key.begin(), key.end(), block.begin());
  }
  std::array<uint8_t, 64> pad;
  std::transform(block.begin(), block.end(), pad.begin(), [](uint8_t b) { return b ^ 0x36; });
  Sha256 inner;
  inner.update(pad.data(), pad.size());
  inner.update(data, length);
  const Digest digest = inner.finish();
  std::transform(block.begin(), block.end(), pad.begin(), [](uint8_t b) { return b ^ 0x5c; });
  Sha256 outer;
  outer.update(pad.data(), pad.size());
  outer.update(digest.data(), digest.size());
  return outer.finish();
}

bool equal_digests(const Digest& a, const Digest& b) {
  volatile uint8_t difference = 0;  // volatile: the compiler must not leave the loop early
  for (size_t i = 0; i < a.size(); ++i) difference = difference | (a[i] ^ b[i]);
  return difference == 0;
}

void random_bytes(void* out, size_t length) {
  auto* at = static_cast<uint8_t*>(out);
  while (length > 0) {
    const ssize_t n = getrandom(at, length, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("random_bytes", "the kernel gives no random bytes", errno);
    at += n, length -= static_cast<size_t>(n);
  }
}

}  // namespace eager::comm
