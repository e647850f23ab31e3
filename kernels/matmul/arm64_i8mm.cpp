#include "kernels/simd_i8mm.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/q_mmla.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <class Panel>
using panel = typename with_codes<Panel, paired_codes>::type_name;

}  // namespace

// f32 products are arm64_dotprod's.
#define FLYWHEEL_Q8(activations, type, scales)                           \
  FLYWHEEL_MATMUL_DEFINE(matmul_##activations##_##type##_6x8_arm64_i8mm, \
                         mmla_product<panel<q_panel_of<dtype::type, simd_i8mm>::type_name>, simd_i8mm, scales>)
#define FLYWHEEL_CHANNEL(type)               \
  FLYWHEEL_MATMUL_DEFINE(                    \
      matmul_q8_row_##type##_6x8_arm64_i8mm, \
      mmla_product<panel<channel_panel_of<dtype::type, simd_i8mm>::type_name>, simd_i8mm, row_scales>)
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
