#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/rope/vector.hpp"

namespace flywheel::inline v0::kernels {

void rope_arm64_dotprod(float* x, std::int64_t n_heads, std::int64_t head_stride, std::int64_t n_rot, const float* cos,
                        const float* sin, rope_pairs pairs) {
  rotate<simd>(x, n_heads, head_stride, n_rot, cos, sin, pairs);
}

}  // namespace flywheel::inline v0::kernels
