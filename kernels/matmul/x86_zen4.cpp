#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/matmul/f32_vector.hpp"
#include "kernels/matmul/q_dot4.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// Without prefetching: where products wait for memory, hardware prefetchers follow a panel as fast as memory delivers
/// it, and every prefetch into L2 takes a slot from them (Q4_0, one row, one core: 33 GB/s, as plain reading; 24 GB/s
/// with prefetch_place's).
struct simd_zen4 : simd {
  static void prefetch(const void*) {}
  static void prefetch_far(const void*) {}
};

/// Where products take longer than half of what memory takes, hardware prefetchers no longer see far enough ahead, and
/// software must (Q4_0, one core: four rows 92 us instead of 118, eight 177 instead of 222). A row's dot products take
/// 16 cycles per block, in which memory delivers some 150 bytes; Q8_0, 1088 bytes, gains from five rows on.
constexpr std::size_t prefetch_bytes = 240;

}  // namespace

#define FLYWHEEL_F32(type) \
  FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_6x32_x86_zen4, f32_product<dtype::type, f32_tiles<simd_zen4>>)
// One tile at a time. Unpacking runs beside dot products here, so that two tiles would save little, and a store of 512
// bits takes two cycles: f32 sums in L1 limit the rest (Q6_K: 55% of the peak instead of 74%).
#define FLYWHEEL_Q8(activations, type, scales)       \
  FLYWHEEL_MATMUL_DEFINE(                            \
      matmul_##activations##_##type##_6x32_x86_zen4, \
      q_product<q_panel_of<dtype::type, simd>::type_name, dot4_tiles<simd, 1, prefetch_bytes>, scales>)
#define FLYWHEEL_CHANNEL(type)              \
  FLYWHEEL_MATMUL_DEFINE(                   \
      matmul_q8_row_##type##_6x32_x86_zen4, \
      q_product<channel_panel_of<dtype::type, simd>::type_name, dot4_tiles<simd, 2, prefetch_bytes>, row_scales>)
#include "kernels/matmul/f32_formats.inc"
#include "kernels/matmul/q_formats.inc"

}  // namespace flywheel::inline v0::kernels
