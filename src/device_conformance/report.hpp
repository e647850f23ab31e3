// What was found, as JSON for programs and Markdown for publication.
#pragma once

#include <string>

#include "device_conformance/isolation.hpp"

namespace flywheel::kit {

struct counts {
  int passed = 0, failed = 0, skipped = 0;
  bool conforms = false;  ///< Every mandatory check passed or does not apply.
};
[[nodiscard]] counts count(const run_result& r);
[[nodiscard]] std::string json_report(const settings& s, const run_result& r);
[[nodiscard]] std::string markdown_report(const settings& s, const run_result& r);

}  // namespace flywheel::kit
