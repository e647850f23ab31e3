#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/low_rank/vector.hpp"

namespace flywheel::inline v0::kernels {

void project_x86_avx512vnni(const project_args& args) { low_rank<simd>::project(args); }
void expand_x86_avx512vnni(const expand_args& args) { low_rank<simd>::expand(args); }

}  // namespace flywheel::inline v0::kernels
