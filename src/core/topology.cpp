#include "src/core/topology.hpp"

#include "src/core/platform.hpp"

#if FLYWHEEL_HAS_THREADS

#  include <algorithm>
#  include <cmath>
#  include <fstream>
#  include <set>
#  include <sstream>
#  include <string>
#  include <thread>
#  include <vector>

#  if defined(__linux__)
#    include <sched.h>
#  elif defined(__APPLE__)
#    include <sys/sysctl.h>
#  endif

namespace flywheel::inline v0 {

namespace {

bool read_line(const std::string& path, std::string& line) {
  std::ifstream file(path);
  return static_cast<bool>(std::getline(file, line)) && !line.empty();
}

/// `limit` becomes the smaller one; 0 means none.
void take_smaller(double& limit, double quota, double period) noexcept {
  if (!(quota > 0) || !(period > 0)) return;
  const double cpus = quota / period;
  limit = limit > 0 ? std::min(limit, cpus) : cpus;
}

void read_v2(const std::string& folder, double& limit) {
  std::string line;
  if (!read_line(folder + "/cpu.max", line)) return;
  std::istringstream fields(line);  // "150000 100000" or "max 100000"
  double quota = 0, period = 0;
  if (fields >> quota >> period) take_smaller(limit, quota, period);
}

void read_v1(const std::string& folder, double& limit) {
  std::string quota, period;
  if (!read_line(folder + "/cpu.cfs_quota_us", quota) || !read_line(folder + "/cpu.cfs_period_us", period)) return;
  double q = 0, p = 0;
  if (std::istringstream(quota) >> q && std::istringstream(period) >> p) take_smaller(limit, q, p);
}

/// Every group from this one up to the hierarchy's root can limit. In a container the host's path may not exist below
/// the mount; its root, which is read too, is then the container's own group.
template <class Read>
void read_upwards(const std::string& mount, std::string group, double& limit, Read read) {
  for (;;) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    read(mount + group, limit);
    if (group.empty()) return;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

#  if defined(__linux__)
std::vector<unsigned> affinity() {
  std::vector<unsigned> processors;
  for (std::size_t count = 1024; count <= (1U << 20); count *= 4) {  // the kernel's mask may be larger than cpu_set_t
    std::vector<cpu_set_t> mask(CPU_ALLOC_SIZE(count) / sizeof(cpu_set_t) + 1);
    const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
    CPU_ZERO_S(bytes, mask.data());
    if (::sched_getaffinity(0, bytes, mask.data()) != 0) continue;
    for (unsigned i = 0; i < bytes * 8; ++i)
      if (CPU_ISSET_S(i, bytes, mask.data())) processors.push_back(i);
    break;
  }
  return processors;
}
#  endif

unsigned hardware() noexcept { return std::max(1U, std::thread::hardware_concurrency()); }

}  // namespace

unsigned count_physical_cores(std::string_view root, std::span<const unsigned> processors) {
  std::set<std::string> cores;  // the list of a core's processors names the core
  for (const unsigned i : processors) {
    const std::string folder = std::string(root) + "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/";
    std::string list;
    if (!read_line(folder + "core_cpus_list", list) && !read_line(folder + "thread_siblings_list", list)) return 0;
    cores.insert(std::move(list));
  }
  return static_cast<unsigned>(cores.size());
}

double cgroup_cpu_limit(std::string_view root) {
  const std::string base(root);
  double limit = 0;
  std::ifstream groups(base + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "hierarchy:controllers:path", v2: "0::path"
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = ",";
    controllers.append(line, first + 1, second - first - 1).append(",");
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") {
      read_upwards(base + "/sys/fs/cgroup", path, limit, read_v2);
      read_upwards(base + "/sys/fs/cgroup/unified", path, limit, read_v2);
    } else if (controllers.find(",cpu,") != std::string::npos) {
      for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu"})
        read_upwards(base + mount, path, limit, read_v1);
    }
  }
  return limit;
}

unsigned usable_processors() noexcept {
#  if defined(__linux__)
  try {
    const std::vector<unsigned> processors = affinity();
    if (!processors.empty()) return static_cast<unsigned>(processors.size());
  } catch (...) {
  }
#  endif
  return hardware();
}

unsigned usable_physical_cores() noexcept {
#  if defined(__linux__)
  try {
    const std::vector<unsigned> processors = affinity();
    unsigned cores = count_physical_cores("", processors);
    if (cores == 0) cores = processors.empty() ? hardware() : static_cast<unsigned>(processors.size());
    // A team a little over its quota runs at the quota, one below it does not: round up.
    const double limit = cgroup_cpu_limit("");
    if (limit > 0) cores = std::min(cores, static_cast<unsigned>(std::ceil(limit)));
    return std::max(1U, cores);
  } catch (...) {
  }
#  elif defined(__APPLE__)
  // Performance cores: a team waits for its slowest member.
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
    int value = 0;
    std::size_t size = sizeof value;
    if (::sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value > 0) return static_cast<unsigned>(value);
  }
#  endif
  return hardware();
}

}  // namespace flywheel::inline v0

#endif
