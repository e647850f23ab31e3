#include "src/core/topology.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/temp_folder.hpp"

#if !defined(FLYWHEEL_SERIAL)

using namespace flywheel;

namespace {

/// A folder that plays the root of a file system.
class fake_root {
 public:
  void put(const std::string& path, const std::string& content) const {
    const std::filesystem::path full = folder_.path() / path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << content << '\n';
  }
  [[nodiscard]] std::string path() const { return folder_.path().string(); }

 private:
  test::temp_folder folder_;
};

unsigned cores(const fake_root& root, std::vector<unsigned> processors) {
  return count_physical_cores(root.path(), processors);
}

}  // namespace

TEST_CASE("siblings are one core", "[topology]") {
  const fake_root root;
  // Four processors, two per core, numbered as Linux does: 0 and 2 are one core, 1 and 3 the other.
  for (int i = 0; i < 4; ++i)
    root.put("sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/core_cpus_list", i % 2 ? "1,3" : "0,2");
  CHECK(cores(root, {0, 1, 2, 3}) == 2);
  CHECK(cores(root, {0, 2}) == 1);
  CHECK(cores(root, {0, 1}) == 2);
  CHECK(cores(root, {3}) == 1);
  CHECK(cores(root, {0, 9}) == 0);  // not told
}

TEST_CASE("older kernels call it thread_siblings_list", "[topology]") {
  const fake_root root;
  root.put("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1");
  root.put("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1");
  CHECK(cores(root, {0, 1}) == 1);
}

TEST_CASE("cgroup v2 quotas limit, the tightest group counts", "[topology]") {
  const fake_root root;
  root.put("proc/self/cgroup", "0::/pod/app");
  CHECK(cgroup_cpu_limit(root.path()) == 0);
  root.put("sys/fs/cgroup/pod/app/cpu.max", "max 100000");
  CHECK(cgroup_cpu_limit(root.path()) == 0);
  root.put("sys/fs/cgroup/pod/app/cpu.max", "400000 100000");
  CHECK(cgroup_cpu_limit(root.path()) == 4);
  root.put("sys/fs/cgroup/pod/cpu.max", "150000 100000");
  CHECK(cgroup_cpu_limit(root.path()) == 1.5);
  root.put("sys/fs/cgroup/cpu.max", "100000 100000");
  CHECK(cgroup_cpu_limit(root.path()) == 1);
}

TEST_CASE("cgroup v1 quotas limit, in a container whose path is the host's too", "[topology]") {
  const fake_root root;
  root.put("proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/docker/1234\n0::/");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  CHECK(cgroup_cpu_limit(root.path()) == 0);
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000");
  CHECK(cgroup_cpu_limit(root.path()) == 2.5);
  root.put("sys/fs/cgroup/cpu,cpuacct/docker/1234/cpu.cfs_quota_us", "50000");
  root.put("sys/fs/cgroup/cpu,cpuacct/docker/1234/cpu.cfs_period_us", "100000");
  CHECK(cgroup_cpu_limit(root.path()) == 0.5);
}

TEST_CASE("nonsense limits nothing", "[topology]") {
  const fake_root root;
  CHECK(cgroup_cpu_limit(root.path()) == 0);
  root.put("proc/self/cgroup", "nonsense\n:\n0:\n0::\n7:cpu:relative");
  root.put("sys/fs/cgroup/cpu.max", "many of them");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "0");
  CHECK(cgroup_cpu_limit(root.path()) == 0);
}

TEST_CASE("this machine has cores", "[topology]") {
  CHECK(usable_processors() >= 1);
  CHECK(usable_physical_cores() >= 1);
  CHECK(usable_physical_cores() <= usable_processors());
}

#endif
