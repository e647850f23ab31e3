// `flywheel bench hardware`: what this machine and this build's kernels can do.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/measure/hardware.hpp"

namespace flywheel::cli {

struct hardware_bench_args {
  unsigned threads = 0;
  std::string isa;
  std::vector<std::string> only;    ///< Names of formats.
  std::vector<std::string> shapes;  ///< "NxK"
  bool quick = false;
  bool full = false;
  bool json = false;
  std::string plot;
  std::uint64_t rotate_mib = 0;
};
int bench_hardware(const hardware_bench_args& args);

struct speed {
  dtype weight{};
  double prefill = 0, decode = 0;  ///< Tokens per second.
};

/// How fast a model of 1.1 billion parameters should be with each measured format, and is with one.
struct model_speeds {
  std::vector<speed> predicted;
  std::optional<speed> measured;
};

/// A roofline (Williams, Waterman, Patterson 2009) as SVG: operations per second over operations per byte of weights,
/// both logarithmic, the roofs as lines, a point for each product of the first shape.
[[nodiscard]] std::string roofline_svg(const measure::hardware_report& report);

}  // namespace flywheel::cli
