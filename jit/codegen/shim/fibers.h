// Blocks and threads as fibers of one OS thread.
//
// A fiber runs until it waits: at __syncthreads, or in a spin loop on memory that another block
// must change.  Which block, and which of its threads, goes on next is the order's decision, so a
// program that relies on a lucky order fails under an unlucky one.  When nobody can go on, the
// launch is abandoned and says who waits where: a hang is never a hang here.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

namespace shim {

constexpr size_t kStack = 64 << 10;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class State : uint8_t { ready, syncing, spinning, done };

struct Fiber {
  jmp_buf at;
  ucontext_t start;  // used once: to get onto the fiber's own stack
  bool started = false;
  State state = State::ready;
  int line = 0;       // of the __syncthreads it waits at
  uint64_t seen = 0;  // progress count when it began to spin
};

struct Block {
  std::vector<Fiber> threads;
  std::vector<unsigned char> shared;
  unsigned waiting = 0, done = 0;
};

// How the next fiber is chosen.  A block goes on as far as it can before another gets a turn; then
// comes, by the order's number,
//   0   the next block
//   1   the lowest block that can go on
//   2   the highest; its threads run from the last to the first
//   3+  a block drawn at random with this seed, and so are threads
struct Order {
  uint64_t seed;
  uint64_t state;
  unsigned pick(unsigned n) {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return unsigned(((state * 0x2545F4914F6CDD1DULL) >> 33) % n);
  }
};

struct Machine {
  std::vector<Block> blocks;
  void (*kernel)(void*) = nullptr;
  void* arguments = nullptr;
  Order order{};
  std::unique_ptr<char[]> stacks;  // not zeroed: most of it is never touched
  jmp_buf scheduler;
  unsigned block = 0, thread = 0;  // what runs now, or ran last
  uint64_t progress = 1;           // counts writes that a spinning fiber may be waiting for
  std::string problem;

  Fiber& current() { return blocks[block].threads[thread]; }
  void wait(State s) {
    Fiber& f = current();
    f.state = s;
    if (!_setjmp(f.at)) _longjmp(scheduler, 1);
  }
  bool can_run(const Fiber& f) const {
    return f.state == State::ready || (f.state == State::spinning && f.seen != progress);
  }
};

inline Machine* machine = nullptr;

}  // namespace shim

inline shim::Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

// Waits until all threads of the block are here, at this line.
inline void sync_block(int line) {
  Machine& m = *machine;
  Block& b = m.blocks[m.block];
  m.current().line = line;
  if (++b.waiting < b.threads.size()) return m.wait(State::syncing);
  for (Fiber& f : b.threads) {
    if (f.line != line && m.problem.empty())
      m.problem = "block " + std::to_string(m.block) + ": threads meet at different " +
                  "__syncthreads, in lines " + std::to_string(f.line) + " and " +
                  std::to_string(line);
    f.state = State::ready;
  }
  b.waiting = 0;
  if (!m.problem.empty()) m.wait(State::syncing);
}

// The body of a spin loop: lets others run until one of them has written an atomic.
inline void pause() {
  Machine& m = *machine;
  m.current().seen = m.progress;
  m.wait(State::spinning);
}

inline void wrote_atomic() { ++machine->progress; }

inline unsigned char* shared_memory() { return machine->blocks[machine->block].shared.data(); }

inline void fiber_main() {
  machine->kernel(machine->arguments);
  ++machine->blocks[machine->block].done;
  machine->wait(State::done);
}

// Chooses the thread of block `b` that runs next; false if none can.
inline bool choose_thread(Machine& m, unsigned b) {
  const auto& threads = m.blocks[b].threads;
  const unsigned n = unsigned(threads.size());
  const unsigned first = m.order.seed > 2 ? m.order.pick(n) : 0;
  for (unsigned i = 0; i < n; ++i) {
    const unsigned t = m.order.seed == 2 ? n - 1 - i : (first + i) % n;
    if (!m.can_run(threads[t])) continue;
    m.block = b;
    m.thread = t;
    return true;
  }
  return false;
}

// Chooses the next fiber to run; false if there is none.
inline bool choose(Machine& m) {
  const unsigned n = unsigned(m.blocks.size());
  const bool in_turn = m.order.seed == 0, descending = m.order.seed == 2;
  const bool random = m.order.seed > 2;
  if ((in_turn || random) && choose_thread(m, m.block)) return true;
  const unsigned first = in_turn ? m.block : random ? m.order.pick(n) : 0;
  for (unsigned i = 0; i < n; ++i)
    if (choose_thread(m, descending ? n - 1 - i : (first + i) % n)) return true;
  return false;
}

inline void run_until_stuck(Machine& m) {
  _setjmp(m.scheduler);  // a fiber that waits comes back here
  if (!m.problem.empty() || !choose(m)) return;
  Fiber& f = m.current();
  f.state = State::ready;
  blockIdx = {m.block, 0, 0};
  threadIdx = {m.thread, 0, 0};
  if (f.started) _longjmp(f.at, 1);
  f.started = true;
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = m.stacks.get() + (size_t(m.block) * blockDim.x + m.thread) * kStack;
  f.start.uc_stack.ss_size = kStack;
  f.start.uc_link = nullptr;
  makecontext(&f.start, fiber_main, 0);
  setcontext(&f.start);
}

inline std::string describe_waits(const Machine& m) {
  std::string text = "deadlock: no thread can go on";
  for (size_t b = 0; b < m.blocks.size(); ++b) {
    unsigned spinning = 0, syncing = 0, line = 0;
    for (const Fiber& f : m.blocks[b].threads) {
      spinning += f.state == State::spinning;
      syncing += f.state == State::syncing;
      if (f.state == State::syncing) line = unsigned(f.line);
    }
    if (!spinning && !syncing) continue;
    text += "\n  block " + std::to_string(b) + ":";
    if (spinning) text += " " + std::to_string(spinning) + " threads wait for another block";
    if (syncing)
      text += std::string(spinning ? "," : "") + " " + std::to_string(syncing) +
              " threads wait at __syncthreads in line " + std::to_string(line);
    if (m.blocks[b].done) text += ", " + std::to_string(m.blocks[b].done) + " have returned";
  }
  return text;
}

// Runs `kernel(arguments)` on every thread.  Returns what went wrong, or "".
inline std::string launch(void (*kernel)(void*), void* arguments, unsigned blocks, unsigned threads,
                          size_t shared_bytes, uint64_t order) {
  Machine m;
  m.kernel = kernel;
  m.arguments = arguments;
  m.order = {order, order * 0x9E3779B97F4A7C15ULL + 1};
  m.stacks.reset(new char[size_t(blocks) * threads * kStack]);
  m.blocks.resize(blocks);
  for (Block& b : m.blocks) {
    b.threads = std::vector<Fiber>(threads);
    b.shared.assign(shared_bytes, 0xFF);  // NaN in every floating dtype
  }
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  if (order > 2) m.block = m.order.pick(blocks);
  machine = &m;
  run_until_stuck(m);
  machine = nullptr;
  for (const Block& b : m.blocks)
    if (m.problem.empty() && b.done < threads) m.problem = describe_waits(m);
  return m.problem;
}

}  // namespace shim
