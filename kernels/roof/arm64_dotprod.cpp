#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/roof/vector.hpp"

namespace flywheel::inline v0::kernels {

double int8_dots_arm64_dotprod(std::int64_t rounds) {
  burst(rounds, simd::set1_word(0), simd::set1_byte(3), simd::set1_byte(5),
        [](simd::bytes x, simd::bytes a, simd::bytes b) { return simd::dot4(x, a, b); });
  return static_cast<double>(rounds) * roof_chains * 16 * 2;
}
double f32_fmas_arm64_dotprod(std::int64_t rounds) { return f32_fma_burst<simd>(rounds); }
double read_pass_arm64_dotprod(const std::byte* data, std::size_t bytes) { return read_burst<simd>(data, bytes); }

}  // namespace flywheel::inline v0::kernels
