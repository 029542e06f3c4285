// Runs ranks of a mesh: as threads of this process, or as processes of their own.
#pragma once
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/meet.h"
#include "comm/mesh.h"
#include "test.h"

namespace eager::comm::test {

using namespace std::chrono_literals;

// A store for one test; ranks reach it at 127.0.0.1.
class Meeting {
 public:
  Meeting() : server("127.0.0.1", 0, "secret") {}

  static MeshOptions options(int rank, int size) {
    MeshOptions o;
    o.rank = rank;
    o.size = size;
    o.prefix = "test/";
    o.secret = "secret";
    o.timeout = 60s;
    return o;
  }
  Store store() const { return Store("127.0.0.1", server.port(), "secret", 60s); }

  StoreServer server;
};

inline Waiting waiting(Duration limit = 30s, const char* op = "test", uint32_t group = 0) {
  Waiting w;
  w.op = op;
  w.group = group;
  w.deadline = Clock::now() + limit;
  return w;
}

// Calls rank(r) in a thread each; throws what all of them have thrown.
inline void in_threads(int size, const std::function<void(int)>& rank) {
  std::vector<std::string> errors(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] {
      try {
        rank(r);
      } catch (const std::exception& e) {
        errors[static_cast<size_t>(r)] = "rank " + std::to_string(r) + ": " + e.what() + "\n  ";
      }
    });
  for (std::thread& t : threads) t.join();
  std::string text;
  for (const std::string& e : errors) text += e;
  if (!text.empty()) throw std::runtime_error(text);
}

using Setup = std::function<void(MeshOptions&)>;

// Every rank with its mesh and its store, in a thread each.
inline void with_meshes(int size, const Setup& setup,
                        const std::function<void(Mesh&, Store&)>& rank) {
  const Meeting meeting;
  in_threads(size, [&](int r) {
    Store store = meeting.store();
    MeshOptions o = Meeting::options(r, size);
    if (setup) setup(o);
    Mesh mesh(o, store);
    rank(mesh, store);
  });
}

inline Setup forced(const std::string& transport) {
  return [transport](MeshOptions& o) { o.transport = transport; };
}

// A job whose ranks are processes.  They are forked before the store's thread starts, because
// ThreadSanitizer forbids threads after a fork of several.  Killed when the object goes.
class Job {
 public:
  using Body = std::function<void(Mesh&, Store&)>;

  Job(int size, const Setup& setup, const Body& body) {
    int ports[2];
    CHECK(pipe(ports) == 0);
    for (int r = 0; r < size; ++r) {
      const pid_t pid = fork();
      CHECK(pid >= 0);
      if (pid == 0) run(r, size, setup, body, ports[0]);
      pids_.push_back(pid);
    }
    meeting_ = std::make_unique<Meeting>();
    const uint16_t port = meeting_->server.port();
    for (int r = 0; r < size; ++r) CHECK(write(ports[1], &port, sizeof port) == sizeof port);
    close(ports[0]);
    close(ports[1]);
  }
  ~Job() {
    for (const pid_t pid : pids_)
      if (pid > 0) ::kill(pid, SIGKILL);
    for (size_t r = 0; r < pids_.size(); ++r) join(static_cast<int>(r));
  }
  Store store() const { return meeting_->store(); }
  void signal(int rank, int number) const { ::kill(pids_[static_cast<size_t>(rank)], number); }
  // Its exit code: 0, or 1 if its body threw; 256 + signal if it was killed.
  int join(int rank) {
    const pid_t pid = std::exchange(pids_[static_cast<size_t>(rank)], -1);
    if (pid <= 0) return -1;
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
  }

 private:
  [[noreturn]] static void run(int rank, int size, const Setup& setup, const Body& body, int pipe) {
    int status = 1;
    try {
      uint16_t port = 0;
      CHECK(read(pipe, &port, sizeof port) == sizeof port);
      Store store("127.0.0.1", port, "secret", 60s);
      MeshOptions o = Meeting::options(rank, size);
      if (setup) setup(o);
      Mesh mesh(o, store);
      body(mesh, store);
      status = 0;
    } catch (const std::exception& e) {
      std::fprintf(stderr, "rank %d: %s\n", rank, e.what());
    }
    _exit(status);
  }

  std::vector<pid_t> pids_;
  std::unique_ptr<Meeting> meeting_;
};

// meet() over all ranks.
inline std::vector<Target> exchange(Mesh& mesh, Store& store, const Region& mine,
                                    const std::string& name) {
  std::vector<int> ranks(static_cast<size_t>(mesh.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return meet(mesh, ranks, mine, exchange_through(store, name, mesh.rank(), mesh.size()));
}

}  // namespace eager::comm::test
