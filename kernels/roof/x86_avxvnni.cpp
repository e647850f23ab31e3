#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/roof/vector.hpp"

namespace flywheel::inline v0::kernels {

double int8_dots_x86_avxvnni(std::int64_t rounds) {
  burst(rounds, simd::set1_word(0), simd::set1_byte(3), simd::set1_byte(5),
        [](__m256i x, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(x, a, b); });
  return static_cast<double>(rounds) * roof_chains * 32 * 2;
}

}  // namespace flywheel::inline v0::kernels
