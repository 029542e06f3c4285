// Windows: what is put is there once it is counted, and nothing leaves its place.
#include <cstring>
#include <numeric>

#include "comm/group.h"
#include "comm/window.h"
#include "ranks.h"

using namespace eager::comm;
using namespace eager::comm::test;

namespace {

void everyone_writes(const char* transport, int size) {
  with_meshes(size, forced(transport), [&](Mesh& mesh, Store& store) {
    const int me = mesh.rank();
    std::vector<int> ranks(static_cast<size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    const size_t row = 100003;  // a row for each writer, of an odd length
    Window window(mesh, ranks, 7, exchange_through(store, "window", me, size), row * size_t(size),
                  30s);
    for (int turn = 1; turn <= 5; ++turn) {
      const std::vector<char> mine(row, char(16 * turn + me));
      for (int r = 0; r < size; ++r) window.put(mine.data(), row, row * size_t(me), r);
      for (int r = 0; r < size; ++r) window.wait(r);
      for (int r = 0; r < size; ++r) {
        const auto* from = reinterpret_cast<const char*>(window.data()) + row * size_t(r);
        CHECK(std::vector<char>(from, from + row) == std::vector<char>(row, char(16 * turn + r)));
      }
      for (int r = 0; r < size; ++r) window.signal(r);  // I have read what was here
      for (int r = 0; r < size; ++r) window.wait(r);
    }
  });
}

}  // namespace

TEST(window_everyone_writes_to_everyone_shm) { everyone_writes("shm", 3); }
TEST(window_everyone_writes_to_everyone_tcp) { everyone_writes("tcp", 2); }

TEST(window_ranges_and_ranks_are_checked) {
  with_meshes(2, forced("shm"), [&](Mesh& mesh, Store& store) {
    Window window(mesh, {0, 1}, 0, exchange_through(store, "window", mesh.rank(), 2), 64, 30s);
    const char byte = 1;
    CHECK_FAILS(invalid, window.put(&byte, 1, 64, 0));
    CHECK_FAILS(invalid, window.put(&byte, SIZE_MAX, 1, 0));
    CHECK_FAILS(invalid, window.put(&byte, 1, 0, 2));
    CHECK_FAILS(invalid, window.signal(-1));
    CHECK_FAILS(invalid, window.wait(5));
    CHECK_FAILS(invalid, Window(mesh, {0, 1}, kGroups, nullptr, 64, 30s));
    window.put(&byte, 1, 63, 1 - mesh.rank());  // the last byte, after all that
    window.wait(1 - mesh.rank());
    CHECK(window.data()[63] == std::byte(1));
  });
}

TEST(window_waiting_in_vain_names_the_rank) {
  with_meshes(2, forced("shm"), [&](Mesh& mesh, Store& store) {
    Window window(mesh, {0, 1}, 0, exchange_through(store, "window", mesh.rank(), 2), 8, 300ms);
    if (mesh.rank() == 0) {
      try {
        window.wait(1);
        CHECK(false);
      } catch (const Error& e) {
        CHECK(e.kind == ErrorKind::peer_lost && e.peer == 1);
        CHECK(std::strstr(e.what(), "Window.wait"));
      }
      store.set("over", "1");
    } else {
      store.get("over");
    }
  });
}

TEST(meet_checks_what_members_send) {
  with_meshes(1, nullptr, [](Mesh& mesh, Store&) {
    const Region& region = mesh.allocate(64);
    const auto answers = [](std::vector<std::string> all) {
      return [all](const std::string&) { return all; };
    };
    CHECK_FAILS(protocol, meet(mesh, {0}, region, answers({"short"})));
    CHECK_FAILS(protocol, meet(mesh, {0}, region, answers({std::string(sizeof(Key), 'x')})));
    CHECK_FAILS(invalid, meet(mesh, {0}, region, answers({"one", "two"})));
  });
}
