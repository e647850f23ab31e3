#include "kernels/simd_avxvnni.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/q_vdot.hpp"

namespace flywheel::inline v0::kernels {

// f32 products are x86_avx2's.
using tiles = q_tiles<simd_avxvnni, dot4_steps<simd_avxvnni>>;

#define FLYWHEEL_Q8(activations, type, scales)                             \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_6x16_x86_avxvnni, \
                         q_product<q_panel_of<dtype::type, simd_avxvnni>::type_name, tiles, scales>)
#define FLYWHEEL_CHANNEL(type)                                    \
  FLYWHEEL_MATMUL_DEFINE(matmul_q8_row_##type##_6x16_x86_avxvnni, \
                         q_product<channel_panel_of<dtype::type, simd_avxvnni>::type_name, tiles, row_scales>)
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
