// A thread that runs submitted functions in order, and the handle of one of them.
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "group.h"

namespace eager::comm {

class Worker {
 public:
  Worker() = default;
  ~Worker();  // runs what was submitted, then joins
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Starts the thread at the first call.
  std::shared_ptr<Work> submit(std::function<void()>);
  bool idle() const;     // nothing waits and nothing runs
  bool current() const;  // called on this worker's thread

 private:
  class Task;
  void run();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> queue_;
  bool running_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace eager::comm
