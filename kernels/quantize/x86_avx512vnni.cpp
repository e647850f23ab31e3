#include "kernels/simd_avx512.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/quantize/vector.hpp"

namespace flywheel::inline v0::kernels {

bool quantize_x86_avx512vnni(const quantize_args& args) { return quantization<simd>::run(args); }

}  // namespace flywheel::inline v0::kernels
