#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/f32_vector.hpp"
#include "kernels/matmul/q_vdot.hpp"

namespace flywheel::inline v0::kernels {
namespace {

using tiles = q_tiles<simd, dot4_lane_steps<simd>>;
template <class Panel>
using panel = typename with_codes<Panel, signed_codes>::type_name;

}  // namespace

#define FLYWHEEL_F32(type) \
  FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_6x8_arm64_dotprod, f32_product<dtype::type, f32_tiles<simd>>)
#define FLYWHEEL_Q8(activations, type, scales)                              \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_6x8_arm64_dotprod, \
                         q_product<panel<q_panel_of<dtype::type, simd>::type_name>, tiles, scales>)
#define FLYWHEEL_CHANNEL(type)                                     \
  FLYWHEEL_MATMUL_DEFINE(matmul_q8_row_##type##_6x8_arm64_dotprod, \
                         q_product<panel<channel_panel_of<dtype::type, simd>::type_name>, tiles, row_scales>)
#include "kernels/matmul/f32_formats.inc"
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
