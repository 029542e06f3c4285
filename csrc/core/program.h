// Runs compiled programs: an instruction table executed by the worker pool.
#pragma once
#include <cstdint>

namespace eager::core {

// One tile.  `buffers` are base addresses, `ins` the instruction's words after the body number.
using Body = void (*)(void* const* buffers, const int64_t* ins);

struct Program {
  const int64_t* words;     // instruction table; each instruction: [length, body, args...],
                            // where length counts the words with itself
  const int64_t* starts;    // [workers * epochs + 1] offsets into words: worker w in epoch e
                            // runs words[starts[e*workers + w] .. starts[e*workers + w + 1])
  int32_t workers, epochs;  // a barrier stands between epochs
  const Body* bodies;
  void* const* buffers;
  const int64_t* stop = nullptr;  // set by a body that failed: epochs to come do nothing
};

// One launch.  Workers beyond num_threads() are run by the threads there are, epoch by epoch.
void run_program(const Program&);

// Built-in body: one matrix product tile through GEMM.
// ins = [dtype(0 f32, 1 f64), m, n, k, batch,
//        a_buf, a_off, a_row, a_col, a_batch, b_buf, ..., c_buf, c_off, c_row, c_batch, beta01]
// offsets and strides in elements; a row/col pair has one stride of 1 (BLAS layouts).
void gemm_tile(void* const* buffers, const int64_t* ins);

}  // namespace eager::core
