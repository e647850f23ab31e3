// Quality against size, as a drawing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flywheel::cli {

struct quality_point {
  std::string name;
  std::uint64_t bytes = 0;
  double kl = 0, error = 0;  ///< Mean KL divergence in nats and its standard error.
};

/// Indices of the points that no other one beats in both size and divergence, by size.
[[nodiscard]] std::vector<std::size_t> pareto_front(std::span<const quality_point> points);

/// An SVG drawing: KL divergence (logarithmic) against bytes, the front as a line, every point with its name. At least
/// one point.
[[nodiscard]] std::string quality_svg(std::span<const quality_point> points, const std::string& title,
                                      const std::string& subtitle);

}  // namespace flywheel::cli
