#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/f32_vector.hpp"
#include "kernels/matmul/q_dot2.hpp"

namespace flywheel::inline v0::kernels {

#define FLYWHEEL_F32(type) \
  FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_6x16_x86_avx2, f32_product<dtype::type, f32_tiles<simd>>)
#define FLYWHEEL_Q8(activations, type, scales)                          \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_4x16_x86_avx2, \
                         q_product<q_panel_of<dtype::type, simd>::type_name, dot2_tiles<simd>, scales>)
#define FLYWHEEL_CHANNEL(type)                                 \
  FLYWHEEL_MATMUL_DEFINE(matmul_q8_row_##type##_4x16_x86_avx2, \
                         q_product<channel_panel_of<dtype::type, simd>::type_name, dot2_tiles<simd>, row_scales>)
FLYWHEEL_F32(f32)
FLYWHEEL_F32(f16)
FLYWHEEL_F32(bf16)
FLYWHEEL_Q8(q8_power32, q8_0, power_scales)
FLYWHEEL_Q8(q8_block32, q8_0, block_scales)
FLYWHEEL_Q8(q8_power32, q4_0, power_scales)
FLYWHEEL_Q8(q8_block32, q4_0, block_scales)
FLYWHEEL_Q8(q8_power32, q4_1, power_scales)
FLYWHEEL_Q8(q8_block32, q4_1, block_scales)
FLYWHEEL_Q8(q8_power32, q5_0, power_scales)
FLYWHEEL_Q8(q8_block32, q5_0, block_scales)
FLYWHEEL_Q8(q8_power32, q5_1, power_scales)
FLYWHEEL_Q8(q8_block32, q5_1, block_scales)
FLYWHEEL_Q8(q8_power32, iq4_nl, power_scales)
FLYWHEEL_Q8(q8_block32, iq4_nl, block_scales)
FLYWHEEL_Q8(q8_power32, mxfp4, power_scales)
FLYWHEEL_Q8(q8_block32, mxfp4, block_scales)
FLYWHEEL_Q8(q8_power32, q8_g128, power_scales)
FLYWHEEL_Q8(q8_block32, q8_g128, block_scales)
FLYWHEEL_Q8(q8_power32, q4_g128, power_scales)
FLYWHEEL_Q8(q8_block32, q4_g128, block_scales)
FLYWHEEL_CHANNEL(q8_channel)
FLYWHEEL_CHANNEL(q4_channel)
FLYWHEEL_Q8(q8_power32, q4_k, power_scales)
FLYWHEEL_Q8(q8_block32, q4_k, block_scales)
FLYWHEEL_Q8(q8_power32, q5_k, power_scales)
FLYWHEEL_Q8(q8_block32, q5_k, block_scales)
FLYWHEEL_Q8(q8_power32, iq4_xs, power_scales)
FLYWHEEL_Q8(q8_block32, iq4_xs, block_scales)
FLYWHEEL_Q8(q8_power16, q6_k, power_scales)
FLYWHEEL_Q8(q8_block16, q6_k, block_scales)
FLYWHEEL_Q8(q8_power16, q2_k, power_scales)
FLYWHEEL_Q8(q8_block16, q2_k, block_scales)
FLYWHEEL_Q8(q8_power16, q3_k, power_scales)
FLYWHEEL_Q8(q8_block16, q3_k, block_scales)
// Decoded panel by panel.
FLYWHEEL_F32(f64)
FLYWHEEL_F32(nvfp4)
FLYWHEEL_F32(tq1_0)
FLYWHEEL_F32(tq2_0)
FLYWHEEL_F32(q1_0)
FLYWHEEL_F32(q2_0)
FLYWHEEL_F32(iq2_xxs)
FLYWHEEL_F32(iq2_xs)
FLYWHEEL_F32(iq2_s)
FLYWHEEL_F32(iq3_xxs)
FLYWHEEL_F32(iq3_s)
FLYWHEEL_F32(iq1_s)
FLYWHEEL_F32(iq1_m)
#undef FLYWHEEL_F32
#undef FLYWHEEL_Q8
#undef FLYWHEEL_CHANNEL

}  // namespace flywheel::inline v0::kernels
