#include "kernels/simd_avx512.hpp"
//
#include "kernels/convert/vector.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {

void f32_to_f16_x86_avx512vnni(const float* x, std::int64_t n, std::uint16_t* out) {
  conversion<simd>::f32_to_f16(x, n, out);
}
void f32_to_q8_x86_avx512vnni(const float* x, std::int64_t n, std::int64_t group, std::int8_t* codes, float* scales) {
  conversion<simd>::f32_to_q8(x, n, group, codes, scales);
}
void to_f32_f16_x86_avx512vnni(const std::byte* row, std::int64_t n, float* out) {
  conversion<simd>::f16_to_f32(row, n, out);
}
void to_f32_bf16_x86_avx512vnni(const std::byte* row, std::int64_t n, float* out) {
  conversion<simd>::bf16_to_f32(row, n, out);
}

}  // namespace flywheel::inline v0::kernels
