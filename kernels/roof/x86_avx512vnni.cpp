#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/roof/vector.hpp"

namespace flywheel::inline v0::kernels {
namespace {

// Not every CPU of this cluster has bfloat16, so this function alone is compiled for it. `burst` cannot be used: its
// lambda would not be.
[[gnu::target("avx512bf16")]] void bf16_burst(std::int64_t rounds) {
  __m512 chains[roof_chains];
  for (__m512& x : chains) x = _mm512_setzero_ps();
  __m512i bits = _mm512_set1_epi16(0x3a83);  // about 1e-3; clang holds no __m512bh in a named register class
  for (std::int64_t i = 0; i < rounds; ++i) {
    for (__m512& x : chains) {
      x = _mm512_dpbf16_ps(x, reinterpret_cast<__m512bh>(bits), reinterpret_cast<__m512bh>(bits));
      asm volatile("" : "+v"(x));
    }
    asm volatile("" : "+v"(bits));
  }
}

}  // namespace

double int8_dots_x86_avx512vnni(std::int64_t rounds) {
  burst(rounds, simd::set1_word(0), simd::set1_byte(3), simd::set1_byte(5),
        [](simd::bytes x, simd::bytes a, simd::bytes b) { return simd::dot4(x, a, b); });
  return static_cast<double>(rounds) * roof_chains * 64 * 2;
}
double f32_fmas_x86_avx512vnni(std::int64_t rounds) { return f32_fma_burst<simd>(rounds); }
double bf16_dots_x86_avx512vnni(std::int64_t rounds) {
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  bf16_burst(rounds);
  return static_cast<double>(rounds) * roof_chains * 32 * 2;
}
double read_pass_x86_avx512vnni(const std::byte* data, std::size_t bytes) { return read_burst<simd>(data, bytes); }

}  // namespace flywheel::inline v0::kernels
