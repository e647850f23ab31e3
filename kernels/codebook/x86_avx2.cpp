#include "kernels/simd_avx2.hpp"
//
#include "kernels/codebook/vector.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {

void codebook_terms_x86_avx2(const std::int8_t* levels, std::int64_t points, int dims, const float* v, const float* w,
                             std::int64_t groups, float* linear, float* square, float* flipped) {
  codebook_search<simd>::terms(levels, points, dims, v, w, groups, linear, square, flipped);
}
void codebook_least_x86_avx2(const float* linear, const float* square, std::int64_t points, const float* scales,
                             int count, float* least) {
  codebook_search<simd>::least(linear, square, points, scales, count, least);
}
std::int64_t codebook_nearest_x86_avx2(const float* linear, const float* square, std::int64_t points, float scale) {
  return codebook_search<simd>::nearest(linear, square, points, scale);
}
void ternary_least_x86_avx2(const ternary_book& book, const float* v, const float* w, const float* scales, int count,
                            float* runs, float* least) {
  ternary_search<simd>::least(book, v, w, scales, count, runs, least);
}

}  // namespace flywheel::inline v0::kernels
