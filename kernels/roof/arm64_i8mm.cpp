#include "kernels/simd_i8mm.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/roof/vector.hpp"

namespace flywheel::inline v0::kernels {

double int8_dots_arm64_i8mm(std::int64_t rounds) {
  using simd = simd_i8mm;
  burst(rounds, simd::set1_word(0), simd::set1_byte(3), simd::set1_byte(5),
        [](simd::bytes x, simd::bytes a, simd::bytes b) { return simd::dot8(x, a, b); });
  return static_cast<double>(rounds) * roof_chains * 32 * 2;
}

}  // namespace flywheel::inline v0::kernels
