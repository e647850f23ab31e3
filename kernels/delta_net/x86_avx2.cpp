#include "kernels/simd_avx2.hpp"
//
#include "kernels/declare.hpp"
#include "kernels/delta_net/vector.hpp"

namespace flywheel::inline v0::kernels {

std::size_t delta_net_scratch_x86_avx2(const delta_net_args& args) { return delta_rule<simd>::scratch_floats(args); }
void delta_net_x86_avx2(const delta_net_args& args, std::int64_t head, float* scratch) {
  delta_rule<simd>::run(args, head, scratch);
}

}  // namespace flywheel::inline v0::kernels
