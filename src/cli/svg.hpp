// Parts of drawings, as SVG text.
#pragma once

#include <cmath>
#include <string>

namespace flywheel::cli::svg {

struct point {
  double x, y;
};

/// A drawing's first lines: a white page. Ends with `end`.
[[nodiscard]] std::string begin(double width, double height);
inline constexpr const char* end = "</svg>\n";

[[nodiscard]] std::string number(double value);                       ///< "12.3"
[[nodiscard]] std::string attribute(const char* name, double value);  ///< " x=\"12.3\""
[[nodiscard]] std::string line(point a, point b, const std::string& style);
/// Text beginning at a point, escaped.
[[nodiscard]] std::string words(point at, const std::string& text, const std::string& style);

/// A step between ticks so that there are about `count`: 1, 2 or 5 times a power of ten.
[[nodiscard]] double tick_step(double range, int count);

/// Places of positive numbers on a logarithmic axis from `origin` over `length` pixels.
struct log_scale {
  double low, high, origin, length;
  [[nodiscard]] double operator()(double value) const {
    return origin + length * (std::log10(value) - std::log10(low)) / (std::log10(high) - std::log10(low));
  }
};

/// Calls draw(value, digit) for 1 to 9 times every power of ten on the axis.
template <class F>
void each_tick(const log_scale& s, F&& draw) {
  for (double decade = std::pow(10, std::floor(std::log10(s.low))); decade <= s.high; decade *= 10)
    for (int digit = 1; digit < 10; ++digit)
      if (decade * digit >= s.low && decade * digit <= s.high) draw(decade * digit, digit);
}

}  // namespace flywheel::cli::svg
