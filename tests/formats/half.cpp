#include "flywheel/formats/half.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel::formats;

namespace {

/// The finite value of f16 bits by the definition of IEEE 754.
double f16_value(unsigned bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

/// Nearest f16 magnitude to x >= 0, ties to even, by search over all of them.
unsigned nearest_f16(double x) {
  unsigned low = 0;
  unsigned high = 0x7C00;  // infinity stands for 2^16, the value after the largest
  const auto value = [](unsigned bits) { return bits == 0x7C00 ? 65536.0 : f16_value(bits); };
  if (x >= 65536.0) return high;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (value(middle) <= x ? low : high) = middle;
  }
  const double down = x - value(low);
  const double up = value(high) - x;
  if (down != up) return down < up ? low : high;
  return low % 2 == 0 ? low : high;
}

}  // namespace

TEST_CASE("every f16 value converts exactly, and back", "[formats]") {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float f = f16_to_f32(static_cast<std::uint16_t>(bits));
    if ((bits & 0x7FFFU) > 0x7C00U) {
      REQUIRE(std::isnan(f));
      REQUIRE(f32_to_f16(f) == (bits | 0x200U));
      continue;
    }
    if ((bits & 0x7FFFU) == 0x7C00U)
      REQUIRE(std::isinf(f));
    else
      REQUIRE(static_cast<double>(f) == f16_value(bits));
    REQUIRE(std::signbit(f) == ((bits & 0x8000U) != 0));
    REQUIRE(f32_to_f16(f) == bits);
  }
}

TEST_CASE("f32 rounds to the nearest f16, ties to even", "[formats]") {
  std::vector<float> values = {65504.0F,
                               65519.0F,
                               65519.996F,
                               65520.0F,
                               65536.0F,
                               1e30F,
                               std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::denorm_min(),
                               0x1p-24F,
                               0x1p-25F,
                               0x1.000002p-25F,
                               0x1.fffffep-26F,
                               0x1.8p-24F,
                               0x1p-14F,
                               0x1.ffcp-15F,
                               0x1.ffep-15F,
                               0x1.fffp-15F};
  // Around every f16 value and every point half-way between two.
  for (unsigned bits = 0; bits < 0x7C00; ++bits) {
    const double here = f16_value(bits);
    const double next = bits + 1 == 0x7C00 ? 65536.0 : f16_value(bits + 1);
    const auto middle = static_cast<float>((here + next) / 2);  // exact: 12 bits
    for (const float v : {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, 1e9F)}) values.push_back(v);
  }
  flywheel::test::tiny_random random(7);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random.uniform() * 4294967296.0);
    float v = 0;
    std::memcpy(&v, &bits, 4);
    if (!std::isnan(v)) values.push_back(std::fabs(v));
  }
  for (const float v : values) {
    const unsigned expected = std::isinf(v) ? 0x7C00 : nearest_f16(static_cast<double>(v));
    if (f32_to_f16(v) != expected || f32_to_f16(-v) != (expected | 0x8000U)) FAIL(v);
  }
  static_assert(f32_to_f16(1.0F) == 0x3C00 && f16_to_f32(0x3C00) == 1.0F);
}

TEST_CASE("bf16 is the upper half of f32, rounded to even", "[formats]") {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const float f = bf16_to_f32(static_cast<std::uint16_t>(bits));
    std::uint32_t whole = 0;
    std::memcpy(&whole, &f, 4);
    REQUIRE(whole == bits << 16);
    if (std::isnan(f)) {
      REQUIRE(std::isnan(bf16_to_f32(f32_to_bf16(f))));
      continue;
    }
    REQUIRE(f32_to_bf16(f) == bits);
    if (std::isinf(f)) continue;
    const auto with_low = [&](std::uint32_t low) {
      float v = 0;
      const std::uint32_t b = whole | low;
      std::memcpy(&v, &b, 4);
      return f32_to_bf16(v);
    };
    REQUIRE(with_low(0x7FFF) == bits);
    REQUIRE(with_low(0x8000) == bits + (bits & 1U));
    REQUIRE(with_low(0x8001) == bits + 1);
  }
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001U)))));
}
