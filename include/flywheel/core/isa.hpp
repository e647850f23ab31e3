// Which instruction sets this CPU has, which of them this build has kernels for, and which one is used.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

/// One ISA cluster: a named set of instructions that kernels are compiled for. The table is cmake/isa.cmake.
struct isa_status {
  std::string_view name;  ///< "generic", "x86_avx2", "x86_avx512vnni", "arm64_dotprod", ...
  bool built = false;     ///< This library holds kernels compiled for it.
  bool detected = false;  ///< This CPU and operating system can run it.
};

struct isa_report {
  std::string cpu;                   ///< Brand string, as the CPU or system gives it.
  std::string architecture;          ///< "x86_64", "aarch64", ...
  std::vector<isa_status> clusters;  ///< In ascending order of preference, generic first.
  std::string_view selected;         ///< What would be used now: the best that is built and detected, or the override.
  bool overridden = false;           ///< FLYWHEEL_ISA or the argument decided it.
};

/// Detects at each call (a microsecond). `override_name` empty: the environment variable FLYWHEEL_ISA if set, else the
/// best. Errors: not_found for an unknown name, unsupported for a cluster that is not built or not detected.
[[nodiscard]] FLYWHEEL_API result<isa_report> detect_isa(std::string_view override_name = {});

}  // namespace flywheel::inline v0
