#include "exchange.h"

#include "comm/group.h"

namespace eager::bind {

void exchange_tile(void* const* buffers, const int64_t* ins) {
  auto& group = *reinterpret_cast<comm::Group*>(ins[1]);
  const auto plan = reinterpret_cast<comm::Plan*>(ins[2]);
  const auto reduction = comm::ReduceOp(ins[3]);
  const auto dtype = comm::DType(ins[5]);
  const void* source = buffers[ins[6]];
  void* target = buffers[ins[7]];
  const auto count = size_t(ins[8]);
  if (plan) {
    plan->start();
    plan->finish();
    return;
  }
  switch (ins[0]) {
    case 0:
      group.all_reduce(target, count, dtype, reduction);
      break;
    case 1:
      group.broadcast(target, count * comm::item_size(dtype), int(ins[4]));
      break;
    case 2:
      group.all_gather(source, target, count * comm::item_size(dtype));
      break;
    default:
      group.reduce_scatter(source, target, count, dtype, reduction);
      break;
  }
}

}  // namespace eager::bind
