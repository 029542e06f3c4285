#include "counters.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

namespace eager::comm {
namespace {

// Not FUTEX_PRIVATE: the other side may be another process that maps the same page.
long futex(std::atomic<uint32_t>& word, int op, uint32_t value, const timespec* limit) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op, value, limit, nullptr, 0);
}

}  // namespace

// Whoever goes to sleep first says so and then looks at the value; whoever advances first changes
// the value and then looks for sleepers.  Sequential consistency: at least one sees the other.
void advance(Counter& c) {
  c.value.fetch_add(1, std::memory_order_seq_cst);
  if (c.sleepers.load(std::memory_order_seq_cst) != 0) wake(c);
}

void sleep_on(Counter& c, uint32_t seen, Duration limit) {
  const int64_t ns = std::max<int64_t>(limit.count(), 0);
  const timespec time{static_cast<time_t>(ns / 1'000'000'000),
                      static_cast<long>(ns % 1'000'000'000)};
  c.sleepers.fetch_add(1, std::memory_order_seq_cst);
  if (c.value.load(std::memory_order_seq_cst) == seen) futex(c.value, FUTEX_WAIT, seen, &time);
  c.sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void wake(Counter& c) { futex(c.value, FUTEX_WAKE, INT_MAX, nullptr); }

}  // namespace eager::comm
