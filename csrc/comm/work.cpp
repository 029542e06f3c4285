#include "work.h"

namespace eager::comm {

class Worker::Task final : public Work {
 public:
  explicit Task(std::function<void()> fn) : fn_(std::move(fn)) {}

  void run() {
    std::exception_ptr error;
    try {
      fn_();
    } catch (...) {
      error = std::current_exception();
    }
    fn_ = nullptr;  // what it holds is freed before done() says so
    const std::lock_guard lock(mutex_);
    error_ = error;
    done_ = true;
    changed_.notify_all();
  }

  bool done() const override {
    const std::lock_guard lock(mutex_);
    return done_;
  }
  bool wait(Duration timeout) override {
    std::unique_lock lock(mutex_);
    // Longer than the clock can count means for ever.
    if (timeout > std::chrono::hours(24 * 365)) {
      changed_.wait(lock, [&] { return done_; });
    } else if (!changed_.wait_for(lock, timeout, [&] { return done_; })) {
      return false;
    }
    if (error_) std::rethrow_exception(error_);
    return true;
  }
  std::exception_ptr exception() const override {
    const std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  std::function<void()> fn_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr error_;
};

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<Work> Worker::submit(std::function<void()> fn) {
  auto task = std::make_shared<Task>(std::move(fn));
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  queue_.push_back(task);
  changed_.notify_all();
  return task;
}

bool Worker::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && !running_;
}

bool Worker::current() const {
  const std::lock_guard lock(mutex_);
  return thread_.joinable() && thread_.get_id() == std::this_thread::get_id();
}

void Worker::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    {
      const std::shared_ptr<Task> task = std::move(queue_.front());
      queue_.pop_front();
      running_ = true;
      lock.unlock();
      task->run();
    }
    lock.lock();
    running_ = false;
  }
}

}  // namespace eager::comm
