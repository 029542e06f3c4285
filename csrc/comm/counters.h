// Arrival counters: what one peer advances here.  Plain memory, so that they can lie in a page
// that the peer maps.
#pragma once
#include <atomic>
#include <cstdint>

#include "fabric.h"

namespace eager::comm {

struct Counter {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;  // threads inside sleep_on(); advance() wakes only if there are
};
static_assert(sizeof(Counter) == 8 && std::atomic<uint32_t>::is_always_lock_free);

struct Counters {
  Counter at[kCounters];
};

// Adds one (release) and wakes sleepers, in whichever process they are.
void advance(Counter&);
// Sleeps while the value is `seen`, at most `limit`.  May return early.
void sleep_on(Counter&, uint32_t seen, Duration limit);
// Wakes sleepers without a change (a peer was lost).
void wake(Counter&);

// Tells the processor that this is a loop that waits.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` does nothing on most cores; isb takes some cycles
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace eager::comm
