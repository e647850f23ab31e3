#include "kernels/simd_neon.hpp"
//
#include "kernels/attention/vector.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {

void store_kv_arm64_dotprod(const store_kv_args& args, std::int64_t kv_head) {
  paged_attention<simd>::store_kv(args, kv_head);
}
std::size_t attention_scratch_arm64_dotprod(const attention_args& args) { return paged_attention<simd>::scratch(args); }
void attention_arm64_dotprod(const attention_args& args, std::int64_t kv_head, std::int64_t token_begin,
                             std::int64_t token_end, float* scratch) {
  paged_attention<simd>::run(args, kv_head, token_begin, token_end, scratch);
}

}  // namespace flywheel::inline v0::kernels
