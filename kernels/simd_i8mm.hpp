// simd_neon.hpp and the products of unsigned by signed bytes of i8mm.
#pragma once

#include "kernels/simd_neon.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct simd_i8mm : simd {
  static int8x16_t signs(bytes x) { return vreinterpretq_s8_u8(x); }
  /// acc + sum of four products, unsigned a, signed b; exact.
  static bytes dot4(bytes acc, bytes a, bytes b) { return from_words(vusdotq_s32(words(acc), a, signs(b))); }
  /// acc[2 i + j] + sum over k < 8 of a[8 i + k] b[8 j + k], unsigned a, signed b; exact.
  static bytes dot8(bytes acc, bytes a, bytes b) { return from_words(vusmmlaq_s32(words(acc), a, signs(b))); }
  /// Words at even or odd places, those of a first.
  static bytes even_words(bytes a, bytes b) { return from_words(vuzp1q_s32(words(a), words(b))); }
  static bytes odd_words(bytes a, bytes b) { return from_words(vuzp2q_s32(words(a), words(b))); }
  /// Sums of neighbouring words, those of a first.
  static bytes add_neighbours(bytes a, bytes b) { return from_words(vpaddq_s32(words(a), words(b))); }
  /// Two words, twice.
  static bytes load_two_words(const std::int32_t* p) {
    const int32x2_t two = vld1_s32(p);
    return from_words(vcombine_s32(two, two));
  }
  /// x 0 x 0
  static bytes word_and_zero(std::int32_t x) {
    return vreinterpretq_u8_u64(vdupq_n_u64(static_cast<std::uint32_t>(x)));
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
