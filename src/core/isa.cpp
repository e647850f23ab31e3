#include "flywheel/core/isa.hpp"

#include <cstdlib>

#include "flywheel/detail/try.hpp"
#include "src/core/cpu_features.hpp"

namespace flywheel::inline v0 {

result<isa_report> detect_isa(std::string_view override_name) {
  return detail::guarded([&]() -> result<isa_report> {
    const cpu_features cpu = detect_cpu_features();
    static_cast<void>(cpu);  // no row of this architecture may ask for it
    isa_report report;
    report.cpu = cpu_brand();
    report.architecture = cpu_architecture();
    report.clusters = {
#define FLYWHEEL_ISA(name, built, test) isa_status{#name, (built) != 0, (test)},
#include "isa_table.inc"
#undef FLYWHEEL_ISA
    };

    std::string_view wanted = override_name;
    const char* source = "the requested ISA";
    if (wanted.empty()) {
      if (const char* environment = std::getenv("FLYWHEEL_ISA")) wanted = environment;
      source = "FLYWHEEL_ISA";
    }
    std::string usable;
    for (const isa_status& row : report.clusters) {
      if (!row.built || !row.detected) continue;
      usable += usable.empty() ? "" : ", ";
      usable += row.name;
      report.selected = row.name;  // rows ascend in preference
    }
    if (wanted.empty()) return report;

    for (const isa_status& row : report.clusters) {
      if (row.name != wanted) continue;
      if (!row.built)
        return error{errc::unsupported,
                     "this build has no kernels for " + std::string(wanted) + "; usable here: " + usable, source};
      if (!row.detected)
        return error{errc::unsupported, "this CPU cannot run " + std::string(wanted) + "; usable here: " + usable,
                     source};
      report.selected = row.name;
      report.overridden = true;
      return report;
    }
    return error{errc::not_found, "there is no ISA named '" + std::string(wanted) + "'; usable here: " + usable,
                 source};
  });
}

}  // namespace flywheel::inline v0
