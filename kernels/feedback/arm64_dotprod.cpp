#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/feedback/vector.hpp"

namespace flywheel::inline v0::kernels {

void round_columns_arm64_dotprod(const feedback_args& args) { feedback<simd>::round_columns(args); }

}  // namespace flywheel::inline v0::kernels
