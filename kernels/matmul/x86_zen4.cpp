#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/q_dot4.hpp"

namespace flywheel::inline v0::kernels {

// One tile at a time. Unpacking runs beside dot products here, so two tiles would save nothing, and a store of 512 bits
// takes two cycles: f32 sums in L1 cost more than they do elsewhere (Q6_K: 55% of the peak instead of 74%). Products
// without such sums (rows with one scale, f32) are x86_avx512vnni's.
#define FLYWHEEL_Q8(activations, type, scales)                          \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_6x32_x86_zen4, \
                         q_product<q_panel_of<dtype::type, simd>::type_name, dot4_tiles<simd, 1>, scales>)
#define FLYWHEEL_CHANNEL(type)
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
