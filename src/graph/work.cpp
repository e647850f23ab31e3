#include "flywheel/graph/work.hpp"

namespace flywheel::inline v0::graph {

std::int64_t multiply_adds(const graph& g, const node& n) noexcept {
  if (n.kind == op::linear) {
    const auto& a = n.as<linear_attributes>();
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < a.weights; ++i) sum += g.weight_of(n.inputs[a.weight_input(i)])->dims.elements();
    return sum;
  }
  if (n.kind == op::moe_ffn) {
    const auto& a = n.as<moe_attributes>();
    std::int64_t expert = 0;
    for (const std::size_t i : {moe_attributes::gate, moe_attributes::up, moe_attributes::down})
      expert += g.weight_of(n.inputs[i])->dims.elements() / a.n_expert;
    return expert * a.n_used;
  }
  if (n.kind == op::delta_net) {
    const auto& a = n.as<delta_net_attributes>();
    // S^T q, S^T k and the update of S with k
    return a.channels() * a.conv_kernel + 3 * a.n_v_heads * a.head_k_dim * a.head_v_dim;
  }
  return 0;
}

}  // namespace flywheel::inline v0::graph
