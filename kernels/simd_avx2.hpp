// AVX2 with FMA and F16C as the vector type `simd`; see simd_avx512.hpp.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flywheel::inline v0::kernels {
namespace {

alignas(32) constexpr std::int32_t avx2_first[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct simd {
  using floats = __m256;
  using mask = __m256;
  using bytes = __m256i;
  static constexpr int width = 8;
  static constexpr int registers = 16;

  static __m256i first(std::int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(avx2_first + 8 - n));
  }

  static floats zero() { return _mm256_setzero_ps(); }
  static floats set1(float x) { return _mm256_set1_ps(x); }
  static floats load(const float* p) { return _mm256_loadu_ps(p); }
  static floats load_part(const float* p, std::int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, floats x) { _mm256_storeu_ps(p, x); }
  static void stream(float* p, floats x) { _mm256_stream_ps(p, x); }
  static void end_stream() { _mm_sfence(); }
  static void store_part(float* p, std::int64_t n, floats x) { _mm256_maskstore_ps(p, first(n), x); }
  static floats add(floats a, floats b) { return _mm256_add_ps(a, b); }
  static floats sub(floats a, floats b) { return _mm256_sub_ps(a, b); }
  static floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
  static floats div(floats a, floats b) { return _mm256_div_ps(a, b); }
  static floats fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
  static floats fnma(floats a, floats b, floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static floats max(floats a, floats b) { return _mm256_max_ps(a, b); }
  static floats min(floats a, floats b) { return _mm256_min_ps(a, b); }
  static floats abs(floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static floats copy_sign(floats x, floats sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_and_ps(bit, sign), _mm256_andnot_ps(bit, x));
  }
  static floats round(floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static mask less(floats a, floats b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static floats select(mask which, floats yes, floats no) { return _mm256_blendv_ps(no, yes, which); }
  static floats scale_power(floats x, floats n) {
    // In two factors, both normal numbers for |n| <= 252, so that results may be denormal or infinite.
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high));
  }
  static floats swap_pairs(floats x) { return _mm256_permute_ps(x, 0xb1); }
  static floats fma_add_sub(floats x, floats y, floats b) { return _mm256_fmaddsub_ps(x, y, b); }
  static floats load_twice(const float* p) {
    const __m256i index = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), index);
  }
  static float largest(floats x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static float sum(floats x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // As assembly, because of the intrinsic GCC drops calls to functions that only prefetch, and gathers many into
  // bursts, which fill the core's few slots for misses: a third of the bandwidth is lost. Always inlined for the same
  // reason.
  [[gnu::always_inline]] static inline void prefetch(const void* p) {
    asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p)));
  }
  /// Into L2 only, for what is needed a microsecond later: L1 has too few slots for that many misses.
  [[gnu::always_inline]] static inline void prefetch_far(const void* p) {
    asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p)));
  }

  static floats load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  static floats load_f16_part(const void* p, std::int64_t n) {
    std::uint16_t halves[width] = {};
    std::memcpy(halves, p, static_cast<std::size_t>(n) * 2);
    return load_f16(halves);
  }
  static void store_f16(void* p, floats x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_f16_part(void* p, std::int64_t n, floats x) {
    std::uint16_t halves[width];
    store_f16(halves, x);
    std::memcpy(p, halves, static_cast<std::size_t>(n) * 2);
  }
  static floats load_bf16(const void* p) {
    const __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
  }

  static floats load_u8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static floats load_i8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static floats load_u4(const void* p, bool high) {
    __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    x = high ? _mm256_srli_epi32(x, 4) : _mm256_and_si256(x, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(x);
  }
  static floats load_e8m0(const void* p) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    return scale_power(_mm256_set1_ps(1.0f), _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(128))));
  }

  static bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static bytes set1_byte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static bytes set1_word(std::int32_t x) { return _mm256_set1_epi32(x); }
  static bytes and_bits(bytes a, bytes b) { return _mm256_and_si256(a, b); }
  static bytes xor_bits(bytes a, bytes b) { return _mm256_xor_si256(a, b); }
  static bytes merge(bytes a, bytes b, bytes mask) { return _mm256_or_si256(a, _mm256_and_si256(b, mask)); }
  template <int N>
  static bytes shift(bytes x) {
    if constexpr (N > 0)
      return _mm256_srli_epi16(x, N);
    else if constexpr (N < 0)
      return _mm256_slli_epi16(x, -N);
    else
      return x;
  }
  static bytes look_up(const std::uint8_t* table, bytes x) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return _mm256_shuffle_epi8(t, x);
  }
  static bytes add_words(bytes a, bytes b) {
    __m256i sum = _mm256_add_epi32(a, b);  // opaque like add_halves
    asm("" : "+x"(sum));
    return sum;
  }
  static bytes add_halves(bytes a, bytes b) {
    // Opaque: compilers reorder long integer sums into trees, which need more registers than there are.
    __m256i sum = _mm256_add_epi16(a, b);
    asm("" : "+x"(sum));
    return sum;
  }
  /// Sums of two products, unsigned a, signed b, in 16 bits; saturates beyond +-32767.
  static bytes dot2(bytes a, bytes b) { return _mm256_maddubs_epi16(a, b); }
  /// Sums of neighbouring 16-bit numbers in 32 bits.
  static bytes pair_sums(bytes x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
  static bytes abs_bytes(bytes x) { return _mm256_abs_epi8(x); }
  /// a with the sign of b.
  static bytes sign_bytes(bytes a, bytes b) { return _mm256_sign_epi8(a, b); }
  static bytes max_words(bytes a, bytes b) { return _mm256_max_epi32(a, b); }
  static std::int32_t largest_word(bytes x) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    most = _mm_max_epi32(most, _mm_unpackhi_epi64(most, most));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 1)));
  }
  /// The low byte of each of `width` words.
  static void store_low_bytes(void* p, bytes words) {
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i low = _mm256_shuffle_epi8(words, pick);
    _mm_storel_epi64(static_cast<__m128i*>(p),
                     _mm_or_si128(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
  }
  static bytes as_bytes(floats x) { return _mm256_castps_si256(x); }
  static floats as_floats(bytes bits) { return _mm256_castsi256_ps(bits); }
  static bytes to_words(floats x) { return _mm256_cvtps_epi32(x); }
  static floats to_floats(bytes words) { return _mm256_cvtepi32_ps(words); }

  // What attention over quantized keys and values needs besides (kernels/attention/float_pages.hpp).
  template <int N>
  static bytes shift_words(bytes x) {
    if constexpr (N > 0)
      return _mm256_srai_epi32(x, N);
    else if constexpr (N < 0)
      return _mm256_slli_epi32(x, -N);
    else
      return x;
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
