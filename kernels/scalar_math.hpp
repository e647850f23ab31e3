// Portable scalar forms of what kernels compute with: branch-free, so that compilers vectorise loops over them. All
// functions are static: every translation unit has its own copy, compiled with its own flags.
#pragma once

#include <cstdint>

namespace flywheel::inline v0::kernels {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 (c0 + ... + c4 r^4) with relative
// error 3e-9 (minimax), so that rounding decides: 1.5 ulp at most over the whole range, denormal results included.
constexpr float exp_log2e = 1.44269504f;
constexpr float exp_ln2_high = 0.693145752f;  // 16 bits: products with n are exact
constexpr float exp_ln2_low = 1.42860677e-6f;
constexpr float exp_c[] = {0.49999993f, 0.16666520f, 0.041668391f, 0.0083687451f, 0.0013814540f};
constexpr float exp_lowest = -104.0f;  // below: 0
constexpr float exp_highest = 89.0f;   // above: infinity
// 2^x = 2^n 2^r, |r| <= 1/2; 2^r = 1 + r (c0 + ... + c5 r^5): the same polynomial in r ln 2.
constexpr float exp2_c[] = {0.693147181f, 0.240226473f, 0.0555036202f, 0.00961852714f, 0.00133902179f, 0.000153210734f};
constexpr float exp2_lowest = -100.0f;   // here and below: 0
constexpr float round_magic = 12582912;  // 1.5 * 2^23: adding it rounds to the nearest integer
// activation::clamped_swish
constexpr float swish_limit = 7;
constexpr float swish_slope = 1.702f;

/// std::bit_cast would leave weak symbols where it is not inlined.
template <class To, class From>
static inline To bits_as(const From& from) {
  return __builtin_bit_cast(To, from);
}

/// a b + c, fused where the hardware does it at full speed; never left to the compiler (see cmake/isa.cmake).
static inline float multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || (defined(__aarch64__) && defined(__clang__))
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/// condition ? a : b without a branch, which would keep loops from being vectorised.
static inline std::uint32_t choose(bool condition, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}
static inline float choose(bool condition, float a, float b) {
  return bits_as<float>(choose(condition, bits_as<std::uint32_t>(a), bits_as<std::uint32_t>(b)));
}

static inline float exp_f32(float x) {
  x = choose(x < exp_lowest, exp_lowest, x);
  x = choose(x > exp_highest, exp_highest, x);
  const float shifted = multiply_add(x, exp_log2e, round_magic);
  const std::int32_t n = bits_as<std::int32_t>(shifted) - bits_as<std::int32_t>(round_magic);
  const float whole = shifted - round_magic;
  const float r = multiply_add(-whole, exp_ln2_low, multiply_add(-whole, exp_ln2_high, x));
  float p = multiply_add(r, exp_c[4], exp_c[3]);
  p = multiply_add(r, p, exp_c[2]);
  p = multiply_add(r, p, exp_c[1]);
  p = multiply_add(r, p, exp_c[0]);
  p = 1 + multiply_add(r * r, p, r);
  // 2^n in two factors, both normal numbers, so that results may be denormal or infinite.
  const std::int32_t half = n >> 1;
  return p * bits_as<float>((half + 127) << 23) * bits_as<float>((n - half + 127) << 23);
}

/// tanh from exp(-2 |x|): absolute error below 2e-7.
static inline float tanh_f32(float x) {
  const std::uint32_t sign = bits_as<std::uint32_t>(x) & 0x80000000u;
  const float e = exp_f32(-2 * bits_as<float>(bits_as<std::uint32_t>(x) ^ sign));
  return bits_as<float>(bits_as<std::uint32_t>((1 - e) / (1 + e)) | sign);
}

static inline float sigmoid_f32(float x) { return 1 / (1 + exp_f32(-x)); }

static inline float silu_f32(float x) { return x / (1 + exp_f32(-x)); }

/// x/2 (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)  (Hendrycks & Gimpel 2016, section 2)
static inline float gelu_tanh_f32(float x) { return x / (1 + exp_f32(-1.59576912f * (x + 0.044715f * x * x * x))); }

static inline float f16_to_f32(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias and makes denormals normal.
  const float value = bits_as<float>(magnitude) * 0x1p112f;
  const std::uint32_t special = choose(magnitude >= (0x7c00u << 13), 0x7f800000u, 0u);
  return bits_as<float>(bits_as<std::uint32_t>(value) | special | sign);
}

/// Round to nearest even; overflow to infinity; denormals kept; NaN becomes quiet and keeps its payload's top bits.
static inline std::uint16_t f32_to_f16_one(float x) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Adding 0.5, whose last place is the f16 denormals' step 2^-24, rounds in hardware.
  const std::uint32_t denormal =
      bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<std::uint32_t>(0.5f);
  std::uint32_t half = choose(magnitude >= 0x38800000u, normal, denormal);
  half = choose(magnitude >= 0x477ff000u, 0x7c00u, half);  // 65520 and more
  half = choose(magnitude > 0x7f800000u, 0x7e00u | ((magnitude >> 13) & 0x1ffu), half);
  return static_cast<std::uint16_t>(half | sign);
}

static inline float bf16_to_f32(std::uint16_t half) { return bits_as<float>(std::uint32_t{half} << 16); }

}  // namespace flywheel::inline v0::kernels
