// NEON with dot products of bytes (arm64) as the vector type `simd`; see simd_avx512.hpp. One register of four floats:
// there are 32, so that a tile of six rows by two of them has its integer and its f32 sums in registers.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace flywheel::inline v0::kernels {
namespace {

struct simd {
  using floats = float32x4_t;
  using mask = uint32x4_t;
  using bytes = uint8x16_t;
  static constexpr int width = 4;
  static constexpr int registers = 32;

  static int32x4_t words(bytes x) { return vreinterpretq_s32_u8(x); }
  static bytes from_words(int32x4_t x) { return vreinterpretq_u8_s32(x); }
  /// From addresses that need not be aligned.
  template <class V>
  static V take(const void* p) {
    V x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }

  static floats zero() { return vdupq_n_f32(0); }
  static floats set1(float x) { return vdupq_n_f32(x); }
  static floats load(const float* p) { return vld1q_f32(p); }
  static floats load_part(const float* p, std::int64_t n) {
    floats x = zero();
    if (n > 0) x = vld1q_lane_f32(p, x, 0);
    if (n > 1) x = vld1q_lane_f32(p + 1, x, 1);
    if (n > 2) x = vld1q_lane_f32(p + 2, x, 2);
    return x;
  }
  static void store(float* p, floats x) { vst1q_f32(p, x); }
  static void stream(float* p, floats x) { store(p, x); }  // there is no intrinsic
  static void end_stream() {}
  static void store_part(float* p, std::int64_t n, floats x) {
    if (n > 0) vst1q_lane_f32(p, x, 0);
    if (n > 1) vst1q_lane_f32(p + 1, x, 1);
    if (n > 2) vst1q_lane_f32(p + 2, x, 2);
  }
  static floats add(floats a, floats b) { return vaddq_f32(a, b); }
  static floats sub(floats a, floats b) { return vsubq_f32(a, b); }
  static floats mul(floats a, floats b) { return vmulq_f32(a, b); }
  static floats div(floats a, floats b) { return vdivq_f32(a, b); }
  static floats fma(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
  static floats fnma(floats a, floats b, floats c) { return vfmsq_f32(c, a, b); }
  /// a b + c with element Lane of b alone.
  template <int Lane>
  static floats fma_lane(floats a, floats b, floats c) {
    return vfmaq_laneq_f32(c, a, b, Lane);
  }
  static floats max(floats a, floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static floats min(floats a, floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static floats abs(floats x) { return vabsq_f32(x); }
  static floats copy_sign(floats x, floats sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, x); }
  static floats round(floats x) { return vrndnq_f32(x); }
  static mask less(floats a, floats b) { return vcltq_f32(a, b); }
  static floats select(mask which, floats yes, floats no) { return vbslq_f32(which, yes, no); }
  static floats scale_power(floats x, floats n) {
    // In two factors, both normal numbers for |n| <= 252, so that results may be denormal or infinite.
    const int32x4_t whole = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    const int32x4_t bias = vdupq_n_s32(127);
    const int32x4_t low = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t high = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(x, vreinterpretq_f32_s32(low)), vreinterpretq_f32_s32(high));
  }
  static floats swap_pairs(floats x) { return vrev64q_f32(x); }
  static floats fma_add_sub(floats x, floats y, floats b) {
    const uint32x4_t even_signs = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
    return vfmaq_f32(vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(b), even_signs)), x, y);
  }
  static floats load_twice(const float* p) {
    const float32x2_t two = vld1_f32(p);
    const floats x = vcombine_f32(two, two);
    return vzip1q_f32(x, x);
  }
  static float largest(floats x) { return vmaxvq_f32(x); }
  static float sum(floats x) { return vaddvq_f32(x); }
  // As assembly; see simd_avx512.hpp. The operand's type lets the offsets that compilers choose be ones PRFM has.
  [[gnu::always_inline]] static inline void prefetch(const void* p) {
    asm volatile("prfm pldl1keep, %0" : : "m"(*static_cast<const std::uint64_t*>(p)));
  }
  [[gnu::always_inline]] static inline void prefetch_far(const void* p) {
    asm volatile("prfm pldl2keep, %0" : : "m"(*static_cast<const std::uint64_t*>(p)));
  }

  static floats load_f16(const void* p) { return vcvt_f32_f16(take<float16x4_t>(p)); }
  static floats load_f16_part(const void* p, std::int64_t n) {
    std::uint16_t halves[width] = {};
    __builtin_memcpy(halves, p, static_cast<std::size_t>(n) * 2);
    return load_f16(halves);
  }
  static void store_f16(void* p, floats x) {
    const float16x4_t halves = vcvt_f16_f32(x);
    __builtin_memcpy(p, &halves, sizeof halves);
  }
  static void store_f16_part(void* p, std::int64_t n, floats x) {
    std::uint16_t halves[width];
    store_f16(halves, x);
    __builtin_memcpy(p, halves, static_cast<std::size_t>(n) * 2);
  }
  static floats load_bf16(const void* p) { return vreinterpretq_f32_u32(vshll_n_u16(take<uint16x4_t>(p), 16)); }

  /// Four bytes as 32-bit words.
  static uint32x4_t widen(const void* p) {
    const uint8x8_t four = vreinterpret_u8_u32(vdup_n_u32(take<std::uint32_t>(p)));
    return vmovl_u16(vget_low_u16(vmovl_u8(four)));
  }
  static floats load_u8(const void* p) { return vcvtq_f32_u32(widen(p)); }
  static floats load_i8(const void* p) {
    const int8x8_t four = vreinterpret_s8_u32(vdup_n_u32(take<std::uint32_t>(p)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four))));
  }
  static floats load_u4(const void* p, bool high) {
    const uint32x4_t x = widen(p);
    return vcvtq_f32_u32(high ? vshrq_n_u32(x, 4) : vandq_u32(x, vdupq_n_u32(15)));
  }
  static floats load_e8m0(const void* p) { return scale_power(set1(1), sub(load_u8(p), set1(128))); }

  static bytes load_bytes(const void* p) { return take<bytes>(p); }
  static bytes set1_byte(int x) { return vdupq_n_u8(static_cast<std::uint8_t>(x)); }
  static bytes set1_word(std::int32_t x) { return from_words(vdupq_n_s32(x)); }
  static bytes and_bits(bytes a, bytes b) { return vandq_u8(a, b); }
  static bytes xor_bits(bytes a, bytes b) { return veorq_u8(a, b); }
  /// In one instruction, because a's bits under the mask are zero wherever this is used.
  static bytes merge(bytes a, bytes b, bytes mask) { return vbslq_u8(mask, b, a); }
  template <int N>  ///< No bits cross bytes here.
  static bytes shift(bytes x) {
    if constexpr (N > 0)
      return vshrq_n_u8(x, N);
    else if constexpr (N < 0)
      return vshlq_n_u8(x, -N);
    else
      return x;
  }
  static bytes look_up(const std::uint8_t* table, bytes x) { return vqtbl1q_u8(vld1q_u8(table), x); }

  static bytes max_words(bytes a, bytes b) { return from_words(vmaxq_s32(words(a), words(b))); }
  static std::int32_t largest_word(bytes x) { return vmaxvq_s32(words(x)); }
  static void store_low_bytes(void* p, bytes x) {
    const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_u8(x));
    const uint8x8_t low = vmovn_u16(vcombine_u16(halves, halves));
    __builtin_memcpy(p, &low, 4);
  }
  template <int N>  ///< Of 32-bit words: to the right for N > 0, with copies of the sign; to the left for N < 0.
  static bytes shift_words(bytes x) {
    if constexpr (N > 0)
      return from_words(vshrq_n_s32(words(x), N));
    else if constexpr (N < 0)
      return from_words(vshlq_n_s32(words(x), -N));
    else
      return x;
  }
  static bytes as_bytes(floats x) { return vreinterpretq_u8_f32(x); }
  static floats as_floats(bytes bits) { return vreinterpretq_f32_u8(bits); }
  static bytes to_words(floats x) { return from_words(vcvtnq_s32_f32(x)); }
  static floats to_floats(bytes x) { return vcvtq_f32_s32(words(x)); }
  /// acc + sum of four products, both signed; exact.
  static bytes dot4(bytes acc, bytes a, bytes b) {
    return from_words(vdotq_s32(words(acc), vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b)));
  }
  /// The same with word Lane of b alone.
  template <int Lane>
  static bytes dot4_lane(bytes acc, bytes a, bytes b) {
    return from_words(vdotq_laneq_s32(words(acc), vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), Lane));
  }
  /// N <= 4 floats, or words, with zeros behind.
  template <int N>
  static floats load_first(const float* p) {
    if constexpr (N == 1) {
      return vsetq_lane_f32(*p, zero(), 0);
    } else if constexpr (N < 4) {
      const floats two = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
      return N == 2 ? two : vld1q_lane_f32(p + 2, two, 2);
    } else {
      return load(p);
    }
  }
  template <int N>
  static bytes load_words(const std::int32_t* p) {
    if constexpr (N == 1) {
      return from_words(vsetq_lane_s32(*p, vdupq_n_s32(0), 0));
    } else if constexpr (N < 4) {
      const int32x4_t two = vcombine_s32(vld1_s32(p), vdup_n_s32(0));
      return from_words(N == 2 ? two : vld1q_lane_s32(p + 2, two, 2));
    } else {
      return from_words(vld1q_s32(p));
    }
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
