#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/quantize/vector.hpp"

namespace flywheel::inline v0::kernels {

bool quantize_x86_avx2(const quantize_args& args) { return quantization<simd>::run(args); }

}  // namespace flywheel::inline v0::kernels
