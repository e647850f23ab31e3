// Statuses of plugin.h in words. A header, so that the conformance kit has it from a shared flywheel, too.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "flywheel/device/plugin.h"

namespace flywheel::inline v0::device {

[[nodiscard]] inline std::string_view to_string_of_status(flywheel_status status) noexcept {
  constexpr std::array<std::string_view, 9> names = {"ok",        "unsupported", "invalid argument", "out of memory",
                                                     "timed out", "device lost", "incompatible",     "corrupt",
                                                     "failed"};
  return status >= 0 && static_cast<std::size_t>(status) < names.size() ? names[static_cast<std::size_t>(status)]
                                                                        : "unknown status";
}

}  // namespace flywheel::inline v0::device
