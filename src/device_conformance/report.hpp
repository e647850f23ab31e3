// What was found, as JSON for programs and Markdown for publication.
#pragma once

#include <string>

#include "device_conformance/isolation.hpp"

namespace flywheel::kit {

struct counts {
  int passed = 0, failed = 0, skipped = 0;
  bool refused = false;   ///< A mandatory check failed.
  bool whole = false;     ///< All groups were checked.
  bool conforms = false;  ///< Every mandatory check there is passed or does not apply.
};
[[nodiscard]] counts count(const settings& s, const run_result& r);
[[nodiscard]] std::string json_report(const settings& s, const run_result& r);
[[nodiscard]] std::string markdown_report(const settings& s, const run_result& r);

}  // namespace flywheel::kit
