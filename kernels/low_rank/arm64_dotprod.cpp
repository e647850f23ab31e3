#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/low_rank/vector.hpp"

namespace flywheel::inline v0::kernels {

void project_arm64_dotprod(const project_args& args) { low_rank<simd>::project(args); }
void expand_arm64_dotprod(const expand_args& args) { low_rank<simd>::expand(args); }

}  // namespace flywheel::inline v0::kernels
