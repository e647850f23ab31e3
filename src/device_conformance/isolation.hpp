// Checks in processes of their own: what a device does to its process is a finding, not the end of the kit.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "device_conformance/check.hpp"

namespace flywheel::kit {

enum class outcome : std::uint8_t { passed, failed, skipped };
[[nodiscard]] const char* to_string(outcome o) noexcept;

struct verdict {
  const check* what = nullptr;
  outcome result = outcome::skipped;
  std::string message;  ///< The finding, why it was skipped, or what was covered.
  double seconds = 0;
};

struct run_result {
  std::vector<verdict> verdicts;  ///< One per check, in their order, and one for a device that fails when it is closed.
  json facts = json::object();
  std::string cannot_open;  ///< Not empty: the device could not be opened, and nothing was checked.
};

/// Runs the checks, each group in a process of its own, and the rest of a group in a new one after a finding or a
/// crash; after a hang the rest of the group has failed. `heard` is told of each verdict at once. Throws what the
/// system refuses.
[[nodiscard]] run_result run_isolated(const settings& s, std::span<const check> checks,
                                      const std::function<void(const verdict&)>& heard);

}  // namespace flywheel::kit
