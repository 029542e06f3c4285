// SHA-256 and HMAC against the vectors of FIPS 180-4 and RFC 4231, and against digests of digests
// over every length of the message up to several blocks.
#include <set>

#include "comm/sha256.h"
#include "test.h"

using namespace eager::comm;

namespace {

std::string hex(const Digest& digest) {
  std::string out;
  for (const uint8_t b : digest) {
    out += "0123456789abcdef"[b >> 4];
    out += "0123456789abcdef"[b & 15];
  }
  return out;
}

std::string hash(const std::string& s) { return hex(sha256(s.data(), s.size())); }
std::string mac(const std::string& key, const std::string& s) {
  return hex(hmac_sha256(key, s.data(), s.size()));
}

std::string steps(size_t length, int step) {
  std::string out(length, '\0');
  for (size_t i = 0; i < length; ++i) out[i] = static_cast<char>(i * step);
  return out;
}

}  // namespace

TEST(sha256_vectors) {
  CHECK(hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hash("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
             "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu") ==
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(hash(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(sha256_of_every_length) {
  Sha256 all;
  for (size_t n = 0; n < 300; ++n) {
    const std::string message = steps(n, 7);
    const Digest digest = sha256(message.data(), n);
    all.update(digest.data(), digest.size());
  }
  CHECK(hex(all.finish()) == "f65f14b090e805017546322e618401d41f0710c213e013a5131eb38bbe8f367f");
}

TEST(sha256_does_not_depend_on_the_pieces) {
  const std::string message = steps(1000, 13);
  const Digest whole = sha256(message.data(), message.size());
  for (size_t piece = 1; piece < 200; ++piece) {
    Sha256 hash;
    for (size_t at = 0; at < message.size(); at += piece)
      hash.update(message.data() + at, std::min(piece, message.size() - at));
    CHECK(hash.finish() == whole);
  }
}

TEST(hmac_vectors) {
  CHECK(mac(std::string(20, '\x0b'), "Hi There") ==
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  CHECK(mac("Jefe", "what do ya want for nothing?") ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(mac(std::string(20, '\xaa'), std::string(50, '\xdd')) ==
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
  CHECK(mac(steps(26, 1).substr(1), std::string(50, '\xcd')) ==
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
  CHECK(mac(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First") ==
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  CHECK(mac(std::string(131, '\xaa'),
            "This is a test using a larger than block-size key and a larger than block-size data. "
            "The key needs to be hashed before being used by the HMAC algorithm.") ==
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

TEST(hmac_of_every_length) {
  Sha256 all;
  for (size_t n = 0; n < 150; ++n) {
    const std::string message = steps(n, 7);
    const Digest digest = hmac_sha256(steps(n, 5), message.data(), n);
    all.update(digest.data(), digest.size());
  }
  CHECK(hex(all.finish()) == "c2f86db1afc1217534eb75cb9768e8915c60b885d6b5edcfbebf757723b70744");
}

TEST(digests_differ_in_any_bit) {
  const Digest a = sha256("a", 1);
  CHECK(equal_digests(a, a));
  for (size_t bit = 0; bit < 256; ++bit) {
    Digest b = a;
    b[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(!equal_digests(a, b));
  }
}

TEST(random_bytes_are_fresh) {
  std::set<Digest> seen;
  for (int i = 0; i < 100; ++i) {
    Digest d{};
    random_bytes(d.data(), d.size());
    CHECK(seen.insert(d).second);
  }
}
