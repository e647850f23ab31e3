#include "flywheel/detail/portable_math.hpp"

#include <bit>
#include <cmath>
#include <cstdint>

#include "support/catch.hpp"

namespace flywheel::detail {
namespace {

double ulps(double value, long double truth) {
  const double next = std::nextafter(std::abs(static_cast<double>(truth)), HUGE_VAL);
  const double step = next - std::abs(static_cast<double>(truth));
  return static_cast<double>(std::abs(static_cast<long double>(value) - truth) / static_cast<long double>(step));
}

TEST_CASE("portable exp and log are accurate", "[portable_math]") {
  double worst_exp = 0;
  for (double x = -700; x < 700; x += 0.00731)
    worst_exp = std::max(worst_exp, ulps(portable_exp(x), std::exp(static_cast<long double>(x))));
  for (double x = -1; x < 1; x += 0.0000317)
    worst_exp = std::max(worst_exp, ulps(portable_exp(x), std::exp(static_cast<long double>(x))));
  CHECK(worst_exp < 1.5);
  double worst_log = 0;
  for (double x = 1e-300; x < 1e300; x *= 1.0371)
    worst_log = std::max(worst_log, ulps(portable_log(x), std::log(static_cast<long double>(x))));
  for (double x = 1.001; x < 8; x += 0.000317)
    worst_log = std::max(worst_log, ulps(portable_log(x), std::log(static_cast<long double>(x))));
  CHECK(worst_log < 1.5);
  CHECK(portable_exp(0.0) == 1.0);
  CHECK(portable_log(1.0) == 0.0);
  CHECK(portable_exp(-708.5) == 0.0);
  CHECK(portable_exp(-HUGE_VAL) == 0.0);
}

}  // namespace
}  // namespace flywheel::detail
