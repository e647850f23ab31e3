// Where test data lies.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "support/catch.hpp"

namespace flywheel::test {

/// A file or folder of the shared data set, or an empty path when that set is not on this machine.
inline std::filesystem::path shared_data(std::string_view relative) {
  const std::string root = FLYWHEEL_SHARED_DATA;
  if (root.empty()) return {};
  const std::filesystem::path path = std::filesystem::path(root) / relative;
  return std::filesystem::exists(path) ? path : std::filesystem::path{};
}

/// A file of the repository.
inline std::filesystem::path source_file(std::string_view relative) {
  return std::filesystem::path(FLYWHEEL_SOURCE_DIR) / relative;
}

/// Declares `variable`, or says that the test is skipped because the shared data are not here, and returns.
#define FLYWHEEL_REQUIRE_SHARED(variable, relative)                                \
  const std::filesystem::path variable = flywheel::test::shared_data(relative);    \
  if (variable.empty()) {                                                          \
    WARN("skipped: shared data not found: " << (relative));                        \
    return;                                                                        \
  }

}  // namespace flywheel::test
