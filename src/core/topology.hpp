// How many cores this process may use. Private to the library.
#pragma once

#include <span>
#include <string_view>

namespace flywheel::inline v0 {

/// Logical processors in this process's affinity mask; at least 1.
[[nodiscard]] unsigned usable_processors() noexcept;
/// Physical cores in the affinity mask, or what the container's CPU quota allows when that is less; at least 1.
[[nodiscard]] unsigned usable_physical_cores() noexcept;

// The parts, reading /proc and /sys below another root, for tests.

/// Distinct cores among these processors; 0 when the system does not say.
[[nodiscard]] unsigned count_physical_cores(std::string_view root, std::span<const unsigned> processors);
/// CPUs that the cgroups (v1 and v2) of this process allow, as a number of processors; 0: no limit.
[[nodiscard]] double cgroup_cpu_limit(std::string_view root);

}  // namespace flywheel::inline v0
