// What a machine says about itself, from made-up systems.
#include "src/measure/machine.hpp"

#include <filesystem>
#include <fstream>
#include <string>

#include "support/catch.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;

namespace {

void put(const test::temp_folder& root, const std::string& path, const std::string& content) {
  const std::filesystem::path full = root.path() / path;
  std::filesystem::create_directories(full.parent_path());
  std::ofstream(full) << content << '\n';
}

void put_cache(const test::temp_folder& root, int index, const char* level, const char* type, const char* size) {
  const std::string folder = "sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
  put(root, folder + "level", level);
  put(root, folder + "type", type);
  put(root, folder + "size", size);
}

}  // namespace

TEST_CASE("caches by level, without those of instructions") {
  const test::temp_folder root;
  put_cache(root, 0, "1", "Data", "48K");
  put_cache(root, 1, "1", "Instruction", "32K");
  put_cache(root, 2, "2", "Unified", "2048K");
  const measure::cache_sizes two = measure::find_caches(root.path().string());
  CHECK(two.l1d == 48 << 10);
  CHECK(two.l2 == 2 << 20);
  CHECK(two.l3 == 0);
  CHECK(two.last() == two.l2);
  put_cache(root, 3, "3", "Unified", "260M");
  CHECK(measure::find_caches(root.path().string()).last() == 260U << 20);
  const test::temp_folder silent;
  CHECK(measure::find_caches(silent.path().string()).last() == 0);
}

TEST_CASE("memory and huge pages") {
  const test::temp_folder root;
  CHECK(measure::huge_page_setting(root.path().string()) == "unknown");
  CHECK(measure::find_memory(root.path().string()).total == 0);
  put(root, "proc/meminfo", "MemTotal:       24000000 kB\nMemFree:        1 kB\nMemAvailable:   12000000 kB");
  put(root, "proc/self/smaps_rollup", "Rss:  100 kB\nAnonHugePages:      4096 kB");
  put(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
  const measure::memory_sizes memory = measure::find_memory(root.path().string());
  CHECK(memory.total == 24000000ULL << 10);
  CHECK(memory.available == 12000000ULL << 10);
  CHECK(measure::huge_page_bytes(root.path().string()) == 4 << 20);
  CHECK(measure::huge_page_setting(root.path().string()) == "madvise");
}

TEST_CASE("rotating is over more than the caches hold, and leaves memory to others") {
  const std::uint64_t bytes = measure::uncached_bytes();
  CHECK(bytes > 0);
  if (const std::uint64_t available = measure::find_memory().available; available > 0) CHECK(bytes <= available / 3);
}
