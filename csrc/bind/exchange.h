// Collectives issued from inside compiled programs.
#pragma once
#include <cstdint>

namespace eager::bind {

// Built-in body of compiled programs: one collective, in which every rank takes part.
// ins = [collective (0 all_reduce, 1 broadcast, 2 all_gather, 3 reduce_scatter), comm::Group*,
//        comm::Plan* or 0, reduction, root, comm::DType, source buffer, target buffer, count]
// `count` in elements: of the whole for all_reduce and broadcast, of one share for the others.
// all_reduce and broadcast work in place: source and target are one buffer; with a plan, that
// buffer is the plan's memory.  Throws comm::Error.
void exchange_tile(void* const* buffers, const int64_t* ins);

}  // namespace eager::bind
