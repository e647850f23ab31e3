// exp and log that give the same bits on every machine: only additions, multiplications and one division, in a fixed
// order (compile without contraction to fused multiply-add). The standard library's functions differ between systems,
// and a sampler must not. Accurate to about one unit in the last place.
#pragma once

#include <bit>
#include <cstdint>

namespace flywheel::inline v0::detail {

// ln 2 in two parts: the product of the first with an integer of up to 11 bits is exact (Cody & Waite 1980).
inline constexpr double ln2_high = 0x1.62e42fee00000p-1;
inline constexpr double ln2_low = 0x1.a39ef35793c76p-33;

/// e^x for x <= 709; 0 below -708 (no subnormal results) and for -infinity. Not for NaN. Free of branches, even of
/// those hidden in comparisons, so that compilers vectorise loops of it.
[[nodiscard]] inline double portable_exp(double x) noexcept {
  // x = k ln 2 + r, |r| <= ln 2 / 2. Adding `shift` rounds to an integer and leaves it in the low bits.
  constexpr double shift = 0x1.8p52;
  const double t = x * 0x1.71547652b82fep0 + shift;
  const double k = t - shift;
  const double r = (x - k * ln2_high) - k * ln2_low;
  // Taylor series: the first term left out is r^14 / 14!, below 5e-18.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double power = std::bit_cast<double>((std::bit_cast<std::uint64_t>(t) + 1023) << 52);  // 2^k
  const std::uint64_t in_range =
      (std::bit_cast<std::uint64_t>(x + 708.0) >> 63) - 1;  // no bit set below -708, else all
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(p * power) & in_range);
}

/// ln x for normal, positive, finite x.
[[nodiscard]] inline double portable_log(double x) noexcept {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  std::int64_t e = static_cast<std::int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFULL) | 0x3FF0000000000000ULL);
  if (m > 0x1.6a09e667f3bcdp0) {
    m *= 0.5;
    ++e;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 23.0;
  for (int n = 21; n >= 3; n -= 2) p = p * z + 1.0 / static_cast<double>(n);
  const double tail = 2.0 * s * z * p;
  const double k = static_cast<double>(e);
  return k * ln2_high + (2.0 * s + (tail + k * ln2_low));
}

}  // namespace flywheel::inline v0::detail
