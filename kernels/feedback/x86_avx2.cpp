#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/feedback/vector.hpp"

namespace flywheel::inline v0::kernels {

void round_columns_x86_avx2(const feedback_args& args) { feedback<simd>::round_columns(args); }

}  // namespace flywheel::inline v0::kernels
