// Int8 codes of f32 numbers, for integer dot products: q = round(x / scale) in [-127, 127], ties to even.
// In an unnamed namespace: each cluster has its own copy.
#pragma once

#include <cstdint>

#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Blocks, or rows, whose largest magnitude is below this are taken as zero: quotients by it must stay finite.
constexpr float q8_smallest = 1e-30f;
constexpr float q8_smallest_row = 1e-28f;
constexpr std::uint32_t infinity_bits = 0x7f800000u;

/// Largest magnitude of 32 numbers, as bits: compared as integers, NaN is the largest.
inline std::uint32_t peak_of(const float* x) {
  std::uint32_t peak = 0;
  for (int i = 0; i < 32; ++i) {
    const std::uint32_t bits = bits_as<std::uint32_t>(x[i]) & 0x7fffffffu;
    peak = bits > peak ? bits : peak;
  }
  return peak;
}

/// The same with the vectors of a cluster.
template <class S>
std::uint32_t peak_of(const float* x) {
  const typename S::bytes magnitude = S::set1_word(0x7fffffff);
  typename S::bytes peak = S::and_bits(S::as_bytes(S::load(x)), magnitude);
  for (int i = S::width; i < 32; i += S::width)
    peak = S::max_words(peak, S::and_bits(S::as_bytes(S::load(x + i)), magnitude));
  return static_cast<std::uint32_t>(S::largest_word(peak));
}

struct q8_scale {
  float scale, inverse;
};
/// max|x| / 127 and its inverse for a block with this peak.
inline q8_scale q8_scale_of(std::uint32_t peak_bits) {
  const float peak = bits_as<float>(peak_bits);
  if (peak_bits >= infinity_bits) return {__builtin_nanf(""), 0};  // infinity or NaN anywhere makes the results NaN
  if (peak < q8_smallest) return {0, 0};
  return {peak / 127, 127 / peak};
}

/// round(x * inverse) of 32 numbers; zeros for inverse 0.
inline void round_codes(const float* x, float inverse, std::int32_t* q) {
  for (int i = 0; i < 32; ++i)
    q[i] = bits_as<std::int32_t>(__builtin_fmaf(x[i], inverse, round_magic)) - bits_as<std::int32_t>(round_magic);
  if (inverse == 0)
    for (int i = 0; i < 32; ++i) q[i] = 0;
}

/// The same with the vectors of a cluster, as bytes; also the sums of the codes over each of Halves.
template <class S, int Halves>
void round_codes(const float* x, float inverse, std::int8_t* q, std::int32_t* sums) {
  if (inverse == 0) {  // x may be infinite
    __builtin_memset(q, 0, 32);
    for (int h = 0; h < Halves; ++h) sums[h] = 0;
    return;
  }
  const typename S::floats factor = S::set1(inverse), magic = S::set1(round_magic);
  for (int h = 0; h < Halves; ++h) {
    typename S::floats sum = S::zero();
    for (int i = 32 / Halves * h; i < 32 / Halves * (h + 1); i += S::width) {
      const typename S::floats rounded = S::fma(S::load(x + i), factor, magic);
      S::store_low_bytes(q + i, S::as_bytes(rounded));
      sum = S::add(sum, S::sub(rounded, magic));
    }
    sums[h] = static_cast<std::int32_t>(S::sum(sum));
  }
}

}  // namespace
}  // namespace flywheel::inline v0::kernels
