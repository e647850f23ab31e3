#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/norm/vector.hpp"

namespace flywheel::inline v0::kernels {

void rms_norm_arm64_dotprod(const float* x, const float* weight, float eps, std::int64_t n, float* y) {
  norms<simd>::rms_norm(x, weight, eps, n, y);
}
void add_rms_norm_arm64_dotprod(const float* x, const float* r, const float* weight, float eps, std::int64_t n,
                                float* sum, float* y) {
  norms<simd>::add_rms_norm(x, r, weight, eps, n, sum, y);
}
void layer_norm_arm64_dotprod(const float* x, const float* weight, const float* bias, float eps, std::int64_t n,
                              float* y) {
  norms<simd>::layer_norm(x, weight, bias, eps, n, y);
}

}  // namespace flywheel::inline v0::kernels
