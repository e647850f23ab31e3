#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/roof/vector.hpp"

namespace flywheel::inline v0::kernels {

double int8_dots_x86_avx2(std::int64_t rounds) {
  burst(rounds, simd::set1_byte(3), simd::set1_byte(5), simd::set1_byte(5),
        [](simd::bytes x, simd::bytes, simd::bytes b) { return simd::dot2(x, b); });
  return static_cast<double>(rounds) * roof_chains * 32 * 2;
}
double f32_fmas_x86_avx2(std::int64_t rounds) { return f32_fma_burst<simd>(rounds); }
double read_pass_x86_avx2(const std::byte* data, std::size_t bytes) { return read_burst<simd>(data, bytes); }

}  // namespace flywheel::inline v0::kernels
