#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/f32_vector.hpp"
#include "kernels/matmul/q_dot4.hpp"

namespace flywheel::inline v0::kernels {

#define FLYWHEEL_F32(type) \
  FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_6x32_x86_avx512vnni, f32_product<dtype::type, f32_tiles<simd>>)
#define FLYWHEEL_Q8(activations, type, scales)                                \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_6x32_x86_avx512vnni, \
                         q_product<q_panel_of<dtype::type, simd>::type_name, dot4_tiles<simd, 2>, scales>)
#define FLYWHEEL_CHANNEL(type)                                       \
  FLYWHEEL_MATMUL_DEFINE(matmul_q8_row_##type##_6x32_x86_avx512vnni, \
                         q_product<channel_panel_of<dtype::type, simd>::type_name, dot4_tiles<simd, 2>, row_scales>)
#include "kernels/matmul/f32_formats.inc"
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
