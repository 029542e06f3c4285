// Every collective with every algorithm on every kind of fabric against a sequential reference.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "comm/group.h"
#include "local_fabric.h"
#include "numeric/half.h"
#include "testing/test.h"

using namespace eager::test;

namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16, DType::i8,
                            DType::u8,  DType::i16, DType::i32, DType::i64,  DType::boolean};
constexpr ReduceOp kOps[] = {ReduceOp::sum, ReduceOp::avg, ReduceOp::min, ReduceOp::max,
                             ReduceOp::prod};
const char* const kAlgorithms[] = {"",     "one_shot",         "direct",
                                   "ring", "halving_doubling", "hierarchical"};

bool floating(DType t) {
  return t == DType::f32 || t == DType::f64 || t == DType::f16 || t == DType::bf16;
}

// Small whole numbers, so that sums and products of 8 are exact in every type but the results do
// not all look alike.
double value_of(int rank, size_t i, DType t, ReduceOp op) {
  const size_t mix = (i * 7 + size_t(rank) * 13 + i / 64 * size_t(rank + 1)) % 11;
  if (t == DType::boolean) return double(mix % 2);
  if (op == ReduceOp::prod) return double(mix % 2 + (mix == 4 ? 1 : 0));
  return double(mix);
}

void write(DType t, std::byte* at, double value) {
  const auto put = [&](auto x) { std::memcpy(at, &x, sizeof x); };
  switch (t) {
    case DType::f32:
      return put(float(value));
    case DType::f64:
      return put(value);
    case DType::f16:
      return put(eager::numeric::to_f16(float(value)));
    case DType::bf16:
      return put(eager::numeric::to_bf16(float(value)));
    case DType::i8:
      return put(int8_t(int64_t(value)));
    case DType::i16:
      return put(int16_t(value));
    case DType::i32:
      return put(int32_t(value));
    case DType::i64:
      return put(int64_t(value));
    default:
      return put(uint8_t(int64_t(value)));
  }
}

// The reference; `last`: the number of ranks.
double reduced(int last, size_t i, DType t, ReduceOp op) {
  double want = value_of(0, i, t, op);
  for (int r = 1; r < last; ++r) {
    const double x = value_of(r, i, t, op);
    if (op == ReduceOp::min) {
      want = std::min(want, x);
    } else if (op == ReduceOp::max) {
      want = std::max(want, x);
    } else if (op == ReduceOp::prod) {
      want *= x;
    } else {
      want += x;
    }
  }
  if (op == ReduceOp::avg) want = t == DType::f64 ? want / last : double(float(want) / float(last));
  if (t == DType::boolean && op == ReduceOp::sum) want = want != 0;
  return want;
}

// Memory of a rank: in a region, or not.
class Memory {
 public:
  Memory(Fabric& fabric, size_t bytes, bool region, size_t shift) : fabric_(fabric) {
    if (region) {
      region_ = &fabric.allocate(bytes + shift + 1);
    } else {
      own_.resize(bytes + shift + 1);
    }
    data = (region ? region_->base : own_.data()) + shift;
  }
  ~Memory() {
    if (region_) fabric_.release(*region_);
  }
  const Region& region() const { return *region_; }
  std::byte* data;

 private:
  Fabric& fabric_;
  const Region* region_ = nullptr;
  std::vector<std::byte> own_;
};

void fill(std::byte* data, size_t begin, size_t count, int rank, DType t, ReduceOp op) {
  for (size_t i = 0; i < count; ++i) {
    write(t, data + i * item_size(t), value_of(rank, begin + i, t, op));
  }
}

void check(const std::byte* data, size_t begin, size_t count, int ranks, DType t, ReduceOp op) {
  std::byte want[8];
  for (size_t i = 0; i < count; ++i) {
    write(t, want, reduced(ranks, begin + i, t, op));
    CHECK(std::memcmp(data + i * item_size(t), want, item_size(t)) == 0);
  }
}

void bytes_of(int rank, size_t n, std::byte* to) {
  for (size_t i = 0; i < n; ++i) to[i] = std::byte(uint8_t(i * 31 + size_t(rank) * 101 + i / 253));
}

void check_bytes(int rank, size_t n, const std::byte* data) {
  std::vector<std::byte> want(n);
  bytes_of(rank, n, want.data());
  CHECK(n == 0 || std::memcmp(data, want.data(), n) == 0);
}

struct Kind {
  LocalOptions options;
  const char* name;
};
const Kind kKinds[] = {{{true, false, 0}, "mapped"},
                       {{false, false, 0}, "unmapped"},
                       {{false, true, 0}, "late"},
                       {{true, true, 2}, "two ranks a host"}};

GroupOptions with(const char* algorithm) {
  GroupOptions options;
  options.algorithm = algorithm;
  options.timeout = std::chrono::seconds(120);
  return options;
}

void everything(Group& g, Fabric& fabric, DType t, ReduceOp op, size_t count, bool region,
                size_t shift) {
  const int n = g.size(), me = g.rank();
  const size_t item = item_size(t);
  {
    Memory data(fabric, count * item, region, shift);
    fill(data.data, 0, count, me, t, op);
    g.all_reduce(data.data, count, t, op);
    check(data.data, 0, count, n, t, op);
    g.barrier();
  }
  {
    const int root = int(count) % n;
    Memory data(fabric, count * item, region, shift), before(fabric, count * item, false, 0);
    fill(data.data, 0, count, me, t, op);
    fill(before.data, 0, count, me, t, op);
    g.reduce(data.data, count, t, op, root);
    if (me == root) {
      check(data.data, 0, count, n, t, op);
    } else {
      CHECK(count == 0 || std::memcmp(data.data, before.data, count * item) == 0);
    }
    g.barrier();
  }
  {
    Memory in(fabric, count * item * size_t(n), region, shift);
    Memory out(fabric, count * item, region, shift);
    fill(in.data, 0, count * size_t(n), me, t, op);
    g.reduce_scatter(in.data, out.data, count, t, op);
    check(out.data, size_t(me) * count, count, n, t, op);
    std::byte* own = in.data + size_t(me) * count * item;
    g.reduce_scatter(in.data, own, count, t, op);
    check(own, size_t(me) * count, count, n, t, op);
    g.barrier();
  }
}

void moves(Group& g, Fabric& fabric, size_t bytes, bool region, size_t shift) {
  const int n = g.size(), me = g.rank();
  Memory one(fabric, bytes, region, shift), many(fabric, bytes * size_t(n), region, shift);
  bytes_of(me, bytes, one.data);
  g.all_gather(one.data, many.data, bytes);
  for (int r = 0; r < n; ++r) check_bytes(r, bytes, many.data + size_t(r) * bytes);
  // In place.
  bytes_of(me + 1, bytes, many.data + size_t(me) * bytes);
  g.all_gather(many.data + size_t(me) * bytes, many.data, bytes);
  for (int r = 0; r < n; ++r) check_bytes(r + 1, bytes, many.data + size_t(r) * bytes);
  for (int root = 0; root < n; root += std::max(1, n - 1)) {
    bytes_of(me == root ? 50 : me, bytes, one.data);
    g.broadcast(one.data, bytes, root);
    check_bytes(50, bytes, one.data);
    bytes_of(me + 7, bytes, one.data);
    g.gather(one.data, me == root ? many.data : nullptr, bytes, root);
    for (int r = 0; me == root && r < n; ++r) {
      check_bytes(r + 7, bytes, many.data + size_t(r) * bytes);
    }
    for (int r = 0; me == root && r < n; ++r) {
      bytes_of(r + 70, bytes, many.data + size_t(r) * bytes);
    }
    g.scatter(me == root ? many.data : nullptr, one.data, bytes, root);
    check_bytes(me + 70, bytes, one.data);
  }
  g.barrier();
}

// Rank s sends (s + 2 d) % 5 times `unit` bytes to rank d.
void unequal(Group& g, size_t unit) {
  const size_t n = size_t(g.size()), me = size_t(g.rank());
  const auto size = [&](size_t from, size_t to) { return (from + 2 * to) % 5 * unit; };
  std::vector<size_t> sends, receives;
  std::vector<std::byte> in, out;
  for (size_t p = 0; p < n; ++p) {
    sends.push_back(size(me, p));
    receives.push_back(size(p, me));
    const size_t begin = in.size();
    in.resize(begin + sends.back());
    bytes_of(int(me * n + p), sends.back(), in.data() + begin);
    out.resize(out.size() + receives.back());
  }
  g.all_to_all(in.data(), sends, out.data(), receives);
  size_t at = 0;
  for (size_t p = 0; p < n; ++p) {
    check_bytes(int(p * n + me), receives[p], out.data() + at);
    at += receives[p];
  }
}

}  // namespace

TEST(collectives_of_every_type_and_operation) {
  for (const Kind& kind : kKinds) {
    for (const int n : {1, 2, 3, 4}) {
      LocalWorld world(n, kind.options);
      world.run_group(
          [&](Group& g) {
            for (const DType t : kTypes) {
              for (const ReduceOp op : kOps) {
                if (op == ReduceOp::avg && !floating(t)) continue;
                for (const size_t count : {0, 1, 67}) {
                  everything(g, world.fabric(g.rank()), t, op, count, false, count % 2);
                }
              }
            }
          },
          with(""));
    }
  }
}

TEST(all_reduce_with_every_algorithm) {
  for (const Kind& kind : kKinds) {
    for (const int n : {1, 2, 3, 5, 8, 10}) {
      for (const char* algorithm : kAlgorithms) {
        LocalWorld world(n, kind.options);
        world.run_group(
            [&](Group& g) {
              size_t step = 0;
              for (const size_t count : {0, 1, 3, 1000, 9011}) {
                const DType t = kTypes[(step + size_t(n)) % 4];
                const bool region = (++step + size_t(n)) % 2 == 0;
                everything(g, world.fabric(g.rank()), t, step % 2 ? ReduceOp::avg : ReduceOp::sum,
                           count, region, region ? item_size(t) : 1);
              }
            },
            with(algorithm));
      }
    }
  }
}

TEST(all_reduce_of_many_chunks) {
  for (const Kind& kind : kKinds) {
    for (const int n : {2, 4}) {
      for (const char* algorithm : kAlgorithms) {
        LocalWorld world(n, kind.options);
        world.run_group(
            [&](Group& g) {
              everything(g, world.fabric(g.rank()), DType::f64, ReduceOp::sum, 100003, false, 2);
              everything(g, world.fabric(g.rank()), DType::f64, ReduceOp::max, 70001, true, 8);
            },
            with(algorithm));
      }
    }
  }
}

TEST(moves_of_bytes) {
  for (const Kind& kind : kKinds) {
    for (const int n : {1, 2, 3, 4, 6, 9}) {
      LocalWorld world(n, kind.options);
      world.run_group(
          [&](Group& g) {
            for (const size_t bytes : {0, 1, 4099, 40001, 700003}) {
              if (bytes > 100000 && n > 4) continue;
              moves(g, world.fabric(g.rank()), bytes, false, 1);
              moves(g, world.fabric(g.rank()), bytes, true, 3);
            }
            for (const size_t unit : {0, 1, 1000, 100003}) unequal(g, unit);
          },
          with(""));
    }
  }
}

TEST(results_are_bit_identical_on_all_ranks_and_in_all_runs) {
  const size_t count = 20011;
  for (const Kind& kind : kKinds) {
    for (const DType t : {DType::f32, DType::f16}) {
      for (const char* algorithm : kAlgorithms) {
        const int n = 4;
        std::vector<std::vector<std::byte>> results(size_t(n) * 2);
        for (int run = 0; run < 2; ++run) {
          LocalWorld world(n, kind.options);
          world.run_group(
              [&](Group& g) {
                std::mt19937 random(uint32_t(g.rank()));
                std::normal_distribution<float> value;
                auto& result = results[size_t(run * n + g.rank())];
                result.resize(count * item_size(t));
                for (size_t i = 0; i < count; ++i) {
                  write(t, result.data() + i * item_size(t), value(random));
                }
                g.all_reduce(result.data(), count, t, ReduceOp::avg);
              },
              with(algorithm));
        }
        for (const auto& result : results) CHECK(result == results[0]);
      }
    }
  }
}

TEST(nan_spreads_through_min_and_max) {
  for (const char* algorithm : kAlgorithms) {
    LocalWorld world(3);
    world.run_group(
        [&](Group& g) {
          for (const ReduceOp op : {ReduceOp::min, ReduceOp::max}) {
            std::vector<float> v(5000, 1);
            v[size_t(g.rank()) * 1000] = NAN;
            g.all_reduce(v.data(), v.size(), DType::f32, op);
            for (size_t i = 0; i < v.size(); ++i)
              CHECK(std::isnan(v[i]) == (i % 1000 == 0 && i < 3000));
          }
        },
        with(algorithm));
  }
}

TEST(plans_of_every_kind) {
  for (const Kind& kind : kKinds) {
    for (const int n : {1, 2, 3, 4, 9}) {
      LocalWorld world(n, kind.options);
      world.run_group(
          [&](Group& g) {
            Fabric& fabric = world.fabric(g.rank());
            for (const size_t count : {0, 1, 70, 20003, 150001}) {
              if (count > 100000 && n > 3) continue;
              const size_t item = 4, parts = size_t(n);
              Memory memory(fabric, count * item * (2 * parts + 1), true, 4);
              const size_t at = size_t(memory.data - memory.region().base);
              const DType t = DType::f32;
              const ReduceOp op = ReduceOp::avg;
              std::byte* all = memory.data;
              std::byte* scattered = all + count * item;
              std::byte* gathered = scattered + count * item * parts;
              const auto reduce = g.plan_all_reduce(memory.region(), at, count, t, op);
              const auto scatter =
                  g.plan_reduce_scatter(memory.region(), at + count * item, count, t, op);
              const auto gather =
                  g.plan_all_gather(memory.region(), at + count * item * (1 + parts), count * item);
              g.barrier();
              const uint64_t staged = fabric.stats().staged_bytes;
              for (int run = 0; run < 3; ++run) {
                fill(all, 0, count, g.rank(), t, op);
                fill(scattered, 0, count * parts, g.rank(), t, op);
                bytes_of(g.rank() + run, count * item, gathered + size_t(g.rank()) * count * item);
                reduce->start();
                scatter->start();
                if (run == 1)
                  g.barrier();  // other collectives may pass between a plan's two halves
                reduce->finish();
                gather->start();
                scatter->finish();
                gather->finish(true);
                check(all, 0, count, n, t, op);
                check(scattered + size_t(g.rank()) * count * item, size_t(g.rank()) * count, count,
                      n, t, op);
                for (int r = 0; r < n; ++r) {
                  check_bytes(r + run, count * item, gathered + size_t(r) * count * item);
                }
              }
              g.barrier();
              CHECK(fabric.stats().staged_bytes == staged);
            }
          },
          with(""));
    }
  }
}

TEST(registered_memory_is_not_staged_by_all_reduce) {
  LocalWorld world(2);
  world.run_group([&](Group& g) {
    Fabric& fabric = world.fabric(g.rank());
    Memory memory(fabric, 1 << 20, true, 0);
    g.all_reduce(memory.data, 1 << 18, DType::f32, ReduceOp::sum);
    CHECK(fabric.stats().staged_bytes == 0);
    CHECK(fabric.stats().direct_bytes >= 1 << 20);
    g.barrier();
  });
}
