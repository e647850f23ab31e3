#include "kernels/declare.hpp"
#include "kernels/quantize/vector.hpp"

namespace flywheel::inline v0::kernels {

bool quantize_generic(const quantize_args& args) { return quantization<formats::encoding::portable_lanes>::run(args); }

}  // namespace flywheel::inline v0::kernels
