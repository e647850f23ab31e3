// What a machine says about itself that measurements depend on. Everything is 0 or empty where a system does not say.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::measure {

/// Bytes; of the first processor, as it sees them (a virtual machine may see the whole host's third level).
struct cache_sizes {
  std::uint64_t l1d = 0, l2 = 0, l3 = 0;
  [[nodiscard]] std::uint64_t last() const noexcept { return l3 ? l3 : l2; }
};

/// `root` plays the root of the file system, for tests.
[[nodiscard]] FLYWHEEL_API cache_sizes find_caches(std::string_view root = {});

struct memory_sizes {
  std::uint64_t total = 0, available = 0;
};
[[nodiscard]] FLYWHEEL_API memory_sizes find_memory(std::string_view root = {});

/// "always", "madvise", "never", or "unknown": Linux's setting for transparent huge pages.
[[nodiscard]] FLYWHEEL_API std::string huge_page_setting(std::string_view root = {});
/// Bytes of this process that lie in huge pages now.
[[nodiscard]] FLYWHEEL_API std::uint64_t huge_page_bytes(std::string_view root = {});

/// Processes that wanted a core in the last minute, this one among them; negative: not known.
[[nodiscard]] FLYWHEEL_API double load_average() noexcept;
/// The most memory this process ever had resident.
[[nodiscard]] FLYWHEEL_API std::uint64_t peak_resident_bytes() noexcept;

/// How many bytes to rotate over so that caches do not help: more than four times the last-level cache, at least
/// 192 MiB, at most a quarter of the memory that is free.
[[nodiscard]] FLYWHEEL_API std::uint64_t uncached_bytes();

}  // namespace flywheel::inline v0::measure
