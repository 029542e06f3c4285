#include "window.h"

#include <algorithm>

#include "error.h"
#include "group.h"

namespace eager::comm {

Window::Window(Fabric& fabric, std::vector<int> ranks, uint32_t id, const Rendezvous& exchange,
               size_t bytes, Duration timeout)
    : fabric_(fabric),
      ranks_(std::move(ranks)),
      id_(id),
      counter_(kReservedCounters + id * kCountersPerGroup),
      bytes_(bytes),
      timeout_(timeout) {
  if (id >= kGroups) {
    fail(ErrorKind::invalid, "Window", "no such id", "less than " + std::to_string(kGroups),
         std::to_string(id));
  }
  region_ = &fabric.allocate(std::max<size_t>(bytes, 1));
  try {
    targets_ = meet(fabric, ranks_, *region_, exchange);
    for (int r : ranks_) seen_.push_back(fabric.arrived(r, counter_));
    exchange("");  // nobody writes before all have looked at their counters
  } catch (...) {
    fabric.release(*region_);
    throw;
  }
}

Window::~Window() { fabric_.release(*region_); }

Waiting Window::waiting(const char* op, uint64_t sequence) const {
  Waiting w;
  w.op = op;
  w.sequence = sequence;
  w.group = id_;
  w.deadline = Clock::now() + timeout_;
  return w;
}

int Window::peer(const char* op, int rank) const {
  if (rank < 0 || size_t(rank) >= ranks_.size()) {
    fail(ErrorKind::invalid, op, "there is no such rank",
         "0 to " + std::to_string(ranks_.size() - 1), std::to_string(rank));
  }
  return ranks_[size_t(rank)];
}

void Window::put(const void* source, size_t length, size_t offset, int to) {
  const int rank = peer("Window.put", to);
  if (offset > bytes_ || length > bytes_ - offset) {
    fail(ErrorKind::invalid, "Window.put", "the range does not fit",
         "within " + std::to_string(bytes_) + " bytes",
         std::to_string(length) + " at offset " + std::to_string(offset));
  }
  const Piece piece{source, length};
  const uint64_t ticket = fabric_.put(targets_[size_t(to)], offset, &piece, 1, counter_);
  fabric_.sent(rank, ticket, waiting("Window.put", 0));
}

void Window::signal(int to) { fabric_.signal(peer("Window.signal", to), counter_); }

void Window::wait(int from, uint32_t count) {
  const int rank = peer("Window.wait", from);
  uint32_t& seen = seen_[size_t(from)];
  fabric_.wait(rank, counter_, seen + count, waiting("Window.wait", seen + count));
  seen += count;
}

}  // namespace eager::comm
