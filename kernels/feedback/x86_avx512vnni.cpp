#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/feedback/vector.hpp"

namespace flywheel::inline v0::kernels {

void round_columns_x86_avx512vnni(const feedback_args& args) { feedback<simd>::round_columns(args); }

}  // namespace flywheel::inline v0::kernels
