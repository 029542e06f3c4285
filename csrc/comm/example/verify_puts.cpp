// Two ranks, on one host or on two, write into each other's memory and check every byte.
//
//   comm_verify_puts RANK ADDRESS PORT [TRANSPORT [LARGEST]]
//
// Rank 0 serves the store at ADDRESS:PORT; EAGER_COMM_SECRET is what both ranks know.  Sizes go
// from 0 to LARGEST bytes (default 16 MiB), one way, the other, and both at once; sources are
// regions and ordinary memory.  Prints what was chosen and how fast it was; exits with 1 if a
// byte is wrong.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "comm/meet.h"
#include "comm/mesh.h"

using namespace eager::comm;
using namespace std::chrono_literals;

namespace {

constexpr uint32_t kPut = 20, kChecked = 21;

Waiting waiting(const char* op) {
  Waiting w;
  w.op = op;
  w.deadline = Clock::now() + 120s;
  return w;
}

// Byte i of what `rank` sends in a round.
std::byte pattern(int rank, size_t round, size_t i) {
  return static_cast<std::byte>((i * 2654435761u >> 7) + round * 31 + static_cast<size_t>(rank));
}

class Pair {
 public:
  Pair(Mesh& mesh, Store& store, size_t largest)
      : mesh_(mesh),
        peer_(1 - mesh.rank()),
        inbox_(mesh.allocate(largest + kMargin)),
        outbox_(mesh.allocate(largest + kMargin)),
        loose_(largest + kMargin),
        target_(meet(mesh, {0, 1}, inbox_,
                     exchange_through(store, "keys", mesh.rank(), 2))[size_t(peer_)]) {}

  // `senders`: bit mask of ranks.  Returns whether all that came here is right.
  bool round(size_t bytes, int senders, bool from_region) {
    const size_t offset = round_ % 5;
    std::byte* source = (from_region ? outbox_.base : loose_.data()) + round_ % 3;
    uint64_t ticket = 0;
    if (senders >> mesh_.rank() & 1) {
      for (size_t i = 0; i < bytes; ++i) source[i] = pattern(mesh_.rank(), round_, i);
      const Piece piece{source, bytes};
      const auto start = Clock::now();
      ticket = mesh_.put(target_, offset, &piece, 1, kPut);
      mesh_.sent(peer_, ticket, waiting("sent"));
      seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
      sent_ += bytes;
    }
    bool right = true;
    if (senders >> peer_ & 1) {
      mesh_.wait(peer_, kPut, ++arrivals_, waiting("put"));
      for (size_t i = 0; i < bytes; ++i)
        right = right && inbox_.base[offset + i] == pattern(peer_, round_, i);
    }
    mesh_.signal(peer_, kChecked);  // the next round may overwrite
    mesh_.wait(peer_, kChecked, static_cast<uint32_t>(++round_), waiting("check"));
    return right;
  }

  void report() const {
    std::printf("rank %d: %s (%s): %zu bytes sent and verified, %.1f MB/s, %llu bytes staged\n",
                mesh_.rank(), mesh_.transport(peer_), mesh_.reason(peer_).c_str(), sent_,
                static_cast<double>(sent_) / 1e6 / (seconds_ > 0 ? seconds_ : 1),
                static_cast<unsigned long long>(mesh_.stats().staged_bytes.load()));
  }

 private:
  static constexpr size_t kMargin = 64;
  Mesh& mesh_;
  const int peer_;
  const Region& inbox_;
  const Region& outbox_;
  std::vector<std::byte> loose_;
  const Target target_;
  size_t round_ = 0, sent_ = 0;
  uint32_t arrivals_ = 0;
  double seconds_ = 0;
};

int run(int rank, const std::string& address, uint16_t port, const std::string& transport,
        size_t largest) {
  const char* secret = std::getenv("EAGER_COMM_SECRET");
  std::unique_ptr<StoreServer> server;
  if (rank == 0) server = std::make_unique<StoreServer>(address, port, secret ? secret : "");
  Store store(address, port, secret ? secret : "", 60s);
  MeshOptions options;
  options.rank = rank;
  options.size = 2;
  options.secret = secret ? secret : "";
  options.transport = transport;
  options.timeout = 60s;
  bool right = true;
  {
    Mesh mesh(options, store);
    Pair pair(mesh, store, largest);
    std::vector<size_t> sizes = {0, 1, 63, 192, 1000, 4096, 16385, 100003};
    for (size_t bytes = size_t(1) << 18; bytes <= largest; bytes *= 8) sizes.push_back(bytes);
    sizes.push_back(largest);
    for (const size_t bytes : sizes)
      for (const int senders : {1, 2, 3})
        if (bytes <= largest) right = pair.round(bytes, senders, senders != 2) && right;
    pair.report();
  }
  if (rank == 0)
    store.get("done");  // the server stays until the other rank needs it no more
  else
    store.set("done", "");
  if (!right) std::fprintf(stderr, "rank %d: bytes arrived wrong\n", rank);
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: comm_verify_puts RANK ADDRESS PORT [TRANSPORT [LARGEST]]\n");
    return 2;
  }
  try {
    return run(std::atoi(argv[1]), argv[2], static_cast<uint16_t>(std::atoi(argv[3])),
               argc > 4 ? argv[4] : "",
               argc > 5 ? std::strtoull(argv[5], nullptr, 10) : size_t(16) << 20);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
