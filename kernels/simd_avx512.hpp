// AVX-512 (F, BW, VL, DQ, VNNI) as the vector type `simd` that the families' templates are written against;
// simd_avx2.hpp is its 256-bit twin. Include one of them in a cluster's source file only: everything is in an unnamed
// namespace, so that each cluster has its own copy of every template, compiled with its own instructions.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own AVX-512 intrinsics for mistakes (GCC bug 105593).
#  pragma GCC diagnostic ignored "-Wuninitialized"
#  pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace flywheel::inline v0::kernels {
namespace {

struct simd {
  using floats = __m512;
  using mask = __mmask16;
  using bytes = __m512i;
  static constexpr int width = 16;  ///< Floats in a vector.
  static constexpr int registers = 32;

  static constexpr __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

  // Floats. `_part` touches the first n < width elements only; loads fill up with zeros.
  static floats zero() { return _mm512_setzero_ps(); }
  static floats set1(float x) { return _mm512_set1_ps(x); }
  static floats load(const float* p) { return _mm512_loadu_ps(p); }
  static floats load_part(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, floats x) { _mm512_storeu_ps(p, x); }
  /// Around the caches, to a multiple of the vector's size; end_stream() before anybody else reads it.
  static void stream(float* p, floats x) { _mm512_stream_ps(p, x); }
  static void end_stream() { _mm_sfence(); }
  static void store_part(float* p, std::int64_t n, floats x) { _mm512_mask_storeu_ps(p, first(n), x); }
  static floats add(floats a, floats b) { return _mm512_add_ps(a, b); }
  static floats sub(floats a, floats b) { return _mm512_sub_ps(a, b); }
  static floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
  static floats div(floats a, floats b) { return _mm512_div_ps(a, b); }
  static floats fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }    ///< a b + c
  static floats fnma(floats a, floats b, floats c) { return _mm512_fnmadd_ps(a, b, c); }  ///< c - a b
  static floats max(floats a, floats b) { return _mm512_max_ps(a, b); }                   ///< b where one is NaN
  static floats min(floats a, floats b) { return _mm512_min_ps(a, b); }                   ///< b where one is NaN
  static floats abs(floats x) { return _mm512_abs_ps(x); }
  static floats copy_sign(floats x, floats sign) {
    const __m512i bit = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(x), 0xca));
  }
  static floats round(floats x) { return _mm512_roundscale_ps(x, 8); }                   ///< Ties to even.
  static mask less(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }  ///< False where one is NaN.
  static floats select(mask which, floats yes, floats no) { return _mm512_mask_blend_ps(which, no, yes); }
  /// values[n] [16], n = how many of 15 ascending thresholds are below x; thresholds has room for 23.
  static floats pick_16(const float* thresholds, const float* values, floats x) {
    __m512i n = _mm512_maskz_set1_epi32(less(set1(thresholds[7]), x), 8);
    n = _mm512_mask_add_epi32(n, less(_mm512_permutexvar_ps(n, load(thresholds + 3)), x), n, _mm512_set1_epi32(4));
    n = _mm512_mask_add_epi32(n, less(_mm512_permutexvar_ps(n, load(thresholds + 1)), x), n, _mm512_set1_epi32(2));
    n = _mm512_mask_add_epi32(n, less(_mm512_permutexvar_ps(n, load(thresholds)), x), n, _mm512_set1_epi32(1));
    return _mm512_permutexvar_ps(n, load(values));
  }
  /// x * 2^n; n integral.
  static floats scale_power(floats x, floats n) { return _mm512_scalef_ps(x, n); }
  /// Adjacent elements exchanged: 1 0 3 2 ...
  static floats swap_pairs(floats x) { return _mm512_permute_ps(x, 0xb1); }
  /// a - b in even elements, a + b in odd ones, with the product a = x y fused.
  static floats fma_add_sub(floats x, floats y, floats b) { return _mm512_fmaddsub_ps(x, y, b); }
  /// width/2 numbers, each twice in a row.
  static floats load_twice(const float* p) {
    const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
  }
  static float largest(floats x) { return _mm512_reduce_max_ps(x); }
  static float sum(floats x) { return _mm512_reduce_add_ps(x); }
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

  // Half precision.
  static floats load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static floats load_f16_part(const void* p, std::int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void store_f16(void* p, floats x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_f16_part(void* p, std::int64_t n, floats x) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static floats load_bf16(const void* p) {
    const __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
  }

  // Small integers as floats: `width` of them.
  static floats load_u8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static floats load_i8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  /// The low or high nibbles of `width` bytes.
  static floats load_u4(const void* p, bool high) {
    __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    x = high ? _mm512_srli_epi32(x, 4) : _mm512_and_si512(x, _mm512_set1_epi32(15));
    return _mm512_cvtepi32_ps(x);
  }
  /// MXFP4's scale 2^(e - 128): e = 0 and 1 are denormals.
  static floats load_e8m0(const void* p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm512_scalef_ps(_mm512_set1_ps(0x1p-126f), _mm512_cvtepi32_ps(_mm512_sub_epi32(e, _mm512_set1_epi32(2))));
  }

  // Bytes.
  static bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
  static bytes set1_byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static bytes set1_word(std::int32_t x) { return _mm512_set1_epi32(x); }
  static bytes and_bits(bytes a, bytes b) { return _mm512_and_si512(a, b); }
  static bytes xor_bits(bytes a, bytes b) { return _mm512_xor_si512(a, b); }
  /// a | (b & mask)
  static bytes merge(bytes a, bytes b, bytes mask) { return _mm512_ternarylogic_epi64(a, b, mask, 0xf8); }
  template <int N>  ///< Towards the low bits for N > 0; bits cross bytes within 16-bit words.
  static bytes shift(bytes x) {
    if constexpr (N > 0)
      return _mm512_srli_epi16(x, N);
    else if constexpr (N < 0)
      return _mm512_slli_epi16(x, -N);
    else
      return x;
  }
  /// table[x] for each byte x < 16.
  static bytes look_up(const std::uint8_t* table, bytes x) {
    const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return _mm512_shuffle_epi8(t, x);
  }

  // 32-bit integers.
  /// x, which compilers cannot follow: it stays in one register.
  [[gnu::always_inline]] static inline bytes keep(bytes x) {
    asm volatile("" : "+v"(x));
    return x;
  }
  static bytes max_words(bytes a, bytes b) { return _mm512_max_epi32(a, b); }
  static std::int32_t largest_word(bytes x) { return _mm512_reduce_max_epi32(x); }
  /// The low byte of each of `width` words.
  static void store_low_bytes(void* p, bytes words) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(words));
  }
  static bytes as_bytes(floats x) { return _mm512_castps_si512(x); }
  static floats as_floats(bytes bits) { return _mm512_castsi512_ps(bits); }
  static bytes to_words(floats x) { return _mm512_cvtps_epi32(x); }
  static floats to_floats(bytes words) { return _mm512_cvtepi32_ps(words); }
  /// acc + sum of four products, unsigned a, signed b; exact.
  static bytes dot4(bytes acc, bytes a, bytes b) { return _mm512_dpbusd_epi32(acc, a, b); }

  // What attention over quantized keys and values needs besides (kernels/attention/float_pages.hpp).
  /// Of 32-bit words: to the right for N > 0, with copies of the sign; to the left for N < 0.
  template <int N>
  static bytes shift_words(bytes x) {
    if constexpr (N > 0)
      return _mm512_srai_epi32(x, N);
    else if constexpr (N < 0)
      return _mm512_slli_epi32(x, -N);
    else
      return x;
  }

  // And with integer dot products (kernels/attention/integer_pages.hpp).
  /// acc + sum of two products of signed 16-bit numbers.
  static bytes dot2_words(bytes acc, bytes a, bytes b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static bytes add_words(bytes a, bytes b) { return _mm512_add_epi32(a, b); }
  static bytes as_words(floats x) { return _mm512_castps_si512(x); }
  static void store_bytes(void* p, bytes x) { _mm512_storeu_si512(p, x); }
  /// `width` bytes, sign-extended to 32 bits.
  static bytes load_i8_words(const void* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
