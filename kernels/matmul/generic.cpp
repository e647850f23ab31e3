// Portable products: f32 activations, weights through the reference codecs unless they are plain numbers.
#include "kernels/declare.hpp"
#include "kernels/matmul/f32_product.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

struct portable {
  static constexpr std::int64_t panel_cols = 8;
  static constexpr std::int64_t tile_rows = 4;
  static constexpr int tiles_at_once = 1;

  template <dtype W>
  static float number(const std::byte* w) {
    if constexpr (W == dtype::f32) {
      return *reinterpret_cast<const float*>(w);
    } else {
      const std::uint16_t half = *reinterpret_cast<const std::uint16_t*>(w);
      return W == dtype::f16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
  }

  template <dtype W, int R>
  static void multiply_chunk(const float* x, std::int64_t, const std::byte* w, std::int64_t length, float* sums,
                             std::size_t) {
    constexpr std::int64_t size = W == dtype::f32 ? 4 : 2;
    float acc[R][panel_cols] = {};
    for (std::int64_t k = 0; k < length; ++k, x += R, w += panel_cols * size) {
      float numbers[panel_cols];
      for (int c = 0; c < panel_cols; ++c) numbers[c] = number<W>(w + c * size);
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < panel_cols; ++c) acc[r][c] = multiply_add(x[r], numbers[c], acc[r][c]);
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < panel_cols; ++c) sums[r * panel_cols + c] += acc[r][c];
  }
};

}  // namespace

#define FLYWHEEL_MATMUL_GENERIC(type) \
  FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_4x8_generic, f32_product<dtype::type, portable>)
FLYWHEEL_MATMUL_GENERIC(f32)
FLYWHEEL_MATMUL_GENERIC(f16)
FLYWHEEL_MATMUL_GENERIC(bf16)
FLYWHEEL_MATMUL_GENERIC(f64)
FLYWHEEL_MATMUL_GENERIC(q8_0)
FLYWHEEL_MATMUL_GENERIC(q4_0)
FLYWHEEL_MATMUL_GENERIC(q4_k)
FLYWHEEL_MATMUL_GENERIC(q5_k)
FLYWHEEL_MATMUL_GENERIC(q6_k)
FLYWHEEL_MATMUL_GENERIC(q5_0)
FLYWHEEL_MATMUL_GENERIC(iq4_nl)
FLYWHEEL_MATMUL_GENERIC(iq4_xs)
FLYWHEEL_MATMUL_GENERIC(mxfp4)
FLYWHEEL_MATMUL_GENERIC(q2_k)
FLYWHEEL_MATMUL_GENERIC(q3_k)
FLYWHEEL_MATMUL_GENERIC(q4_1)
FLYWHEEL_MATMUL_GENERIC(q5_1)
FLYWHEEL_MATMUL_GENERIC(nvfp4)
FLYWHEEL_MATMUL_GENERIC(tq1_0)
FLYWHEEL_MATMUL_GENERIC(tq2_0)
FLYWHEEL_MATMUL_GENERIC(q1_0)
FLYWHEEL_MATMUL_GENERIC(q2_0)
FLYWHEEL_MATMUL_GENERIC(q8_g128)
FLYWHEEL_MATMUL_GENERIC(q4_g128)
FLYWHEEL_MATMUL_GENERIC(q8_channel)
FLYWHEEL_MATMUL_GENERIC(q4_channel)
FLYWHEEL_MATMUL_GENERIC(iq2_xxs)
FLYWHEEL_MATMUL_GENERIC(iq2_xs)
FLYWHEEL_MATMUL_GENERIC(iq2_s)
FLYWHEEL_MATMUL_GENERIC(iq3_xxs)
FLYWHEEL_MATMUL_GENERIC(iq3_s)
FLYWHEEL_MATMUL_GENERIC(iq1_s)
FLYWHEEL_MATMUL_GENERIC(iq1_m)

}  // namespace flywheel::inline v0::kernels
