#include "kernels/simd_avx512.hpp"
//
#include "kernels/activation/vector.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {

void glu_x86_avx512vnni(activation kind, const float* gate, const float* up, std::int64_t n, float* y) {
  element_wise<simd>::glu(kind, gate, up, n, y);
}
void activate_x86_avx512vnni(activation kind, const float* x, std::int64_t n, float* y) {
  element_wise<simd>::activate(kind, x, n, y);
}
void add_x86_avx512vnni(const float* a, const float* b, std::int64_t n, float* y) {
  element_wise<simd>::add(a, b, n, y);
}
void scaled_add_x86_avx512vnni(const float* x, float s, std::int64_t n, float* y) {
  element_wise<simd>::scaled_add(x, s, n, y);
}
void scale_x86_avx512vnni(const float* x, float s, std::int64_t n, float* y) { element_wise<simd>::scale(x, s, n, y); }
void softcap_x86_avx512vnni(const float* x, float cap, std::int64_t n, float* y) {
  element_wise<simd>::softcap(x, cap, n, y);
}

}  // namespace flywheel::inline v0::kernels
