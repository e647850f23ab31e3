#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/low_rank/vector.hpp"

namespace flywheel::inline v0::kernels {

void project_x86_avx2(const project_args& args) { low_rank<simd>::project(args); }
void expand_x86_avx2(const expand_args& args) { low_rank<simd>::expand(args); }

}  // namespace flywheel::inline v0::kernels
