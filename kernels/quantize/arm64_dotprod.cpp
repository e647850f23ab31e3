#include "kernels/simd_neon.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/quantize/vector.hpp"

namespace flywheel::inline v0::kernels {

bool quantize_arm64_dotprod(const quantize_args& args) { return quantization<simd>::run(args); }

}  // namespace flywheel::inline v0::kernels
