// SHA-256 (FIPS 180-4), HMAC (RFC 2104) and what goes with them: comparison in constant time, and
// random bytes from the kernel.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace eager::comm {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void update(const void* data, size_t length);
  Digest finish();  // once; the object is of no use afterwards

 private:
  void block(const uint8_t* data);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> tail_{};  // bytes that do not fill a block yet
  uint64_t length_ = 0;             // bytes so far
};

Digest sha256(const void* data, size_t length);
Digest hmac_sha256(const std::string& key, const void* data, size_t length);
// Takes the same time wherever the two differ.
bool equal_digests(const Digest&, const Digest&);
// Fresh bytes nobody can guess.  Throws Error(system).
void random_bytes(void* out, size_t length);

}  // namespace eager::comm
