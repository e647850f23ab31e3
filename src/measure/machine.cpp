#include "src/measure/machine.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>

#if defined(__unix__) || defined(__APPLE__)
#  include <sys/resource.h>
#  define FLYWHEEL_HAS_RUSAGE 1
#endif
#if defined(__APPLE__)
#  include <sys/sysctl.h>
#endif

namespace flywheel::inline v0::measure {
namespace {

std::string first_word(const std::string& path) {
  std::ifstream in(path);
  std::string word;
  in >> word;
  return word;
}

/// "48K", "260M"
std::uint64_t bytes_of(const std::string& size) {
  char* unit = nullptr;
  const std::uint64_t number = std::strtoull(size.c_str(), &unit, 10);
  return *unit == 'K' ? number << 10 : *unit == 'M' ? number << 20 : *unit == 'G' ? number << 30 : number;
}

/// The number of kB behind `key` in files such as /proc/meminfo, in bytes.
std::uint64_t field_bytes(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) << 10;
  return 0;
}

#if defined(__APPLE__)
std::uint64_t system_number(const char* name) {
  std::uint64_t value = 0;
  std::size_t size = sizeof value;
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
#endif

}  // namespace

cache_sizes find_caches(std::string_view root) {
  cache_sizes found;
#if defined(__APPLE__)
  if (root.empty())
    return {system_number("hw.l1dcachesize"), system_number("hw.l2cachesize"), system_number("hw.l3cachesize")};
#endif
  for (int i = 0;; ++i) {
    const std::string folder = std::string(root) + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
    const std::string level = first_word(folder + "level");
    if (level.empty()) return found;
    if (first_word(folder + "type") == "Instruction") continue;
    const std::uint64_t bytes = bytes_of(first_word(folder + "size"));
    if (level == "1") found.l1d = bytes;
    if (level == "2") found.l2 = bytes;
    if (level == "3") found.l3 = bytes;
  }
}

memory_sizes find_memory(std::string_view root) {
#if defined(__APPLE__)
  if (root.empty()) return {system_number("hw.memsize"), system_number("hw.memsize") / 2};
#endif
  const std::string path = std::string(root) + "/proc/meminfo";
  return {field_bytes(path, "MemTotal:"), field_bytes(path, "MemAvailable:")};
}

std::string huge_page_setting(std::string_view root) {
  std::ifstream in(std::string(root) + "/sys/kernel/mm/transparent_hugepage/enabled");
  for (std::string word; in >> word;)
    if (word.size() > 2 && word.front() == '[' && word.back() == ']') return word.substr(1, word.size() - 2);
  return "unknown";
}

std::uint64_t huge_page_bytes(std::string_view root) {
  return field_bytes(std::string(root) + "/proc/self/smaps_rollup", "AnonHugePages:");
}

double load_average() noexcept {
#if defined(FLYWHEEL_HAS_RUSAGE) && !defined(__ANDROID__)
  double load = 0;
  if (::getloadavg(&load, 1) == 1) return load;
#endif
  return -1;
}

std::uint64_t peak_resident_bytes() noexcept {
#if defined(FLYWHEEL_HAS_RUSAGE)
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#  if defined(__APPLE__)
  return static_cast<std::uint64_t>(usage.ru_maxrss);
#  else
  return static_cast<std::uint64_t>(usage.ru_maxrss) << 10;
#  endif
#else
  return 0;
#endif
}

std::uint64_t uncached_bytes() {
  constexpr std::uint64_t least = std::uint64_t{192} << 20, page = std::uint64_t{2} << 20;
  const std::uint64_t wanted = std::max(least, find_caches().last() * 4 + page);
  const std::uint64_t available = find_memory().available;
  return (available ? std::min(wanted, available / 4) : wanted) / page * page;
}

}  // namespace flywheel::inline v0::measure
