#include "src/model/kv_layout.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/core/checksum.hpp"

namespace flywheel::inline v0::detail {
namespace {

constexpr std::int64_t most_layers = 1 << 16;

/// Enters what a node needs into the slot of its layer.
result<void> enter(kv_layout& layout, std::int64_t layer, const kv_slot& wanted) {
  const auto wrong = [&](const char* message) {
    return error{errc::invalid_argument, message, "layer " + std::to_string(layer) + " of the KV cache"};
  };
  if (layer < 0 || layer >= most_layers) return wrong("is out of range");
  if (static_cast<std::size_t>(layer) >= layout.slots.size()) layout.slots.resize(static_cast<std::size_t>(layer) + 1);
  kv_slot& slot = layout.slots[static_cast<std::size_t>(layer)];
  if (slot.what == kv_slot::kind::none) {
    slot = wanted;
    return {};
  }
  kv_slot merged = wanted;
  merged.window = slot.window == 0 || wanted.window == 0 ? 0 : std::max(slot.window, wanted.window);
  slot.window = merged.window;
  if (slot != merged) return wrong("is used by two nodes that need different memory");
  return {};
}

}  // namespace

std::uint64_t kv_layout::digest() const noexcept {
  checksum sum;
  for (const kv_slot& s : slots) {
    const std::array<std::int64_t, 5> numbers = {static_cast<std::int64_t>(s.what), s.n_kv_heads, s.head_dim, s.window,
                                                 s.state_floats};
    sum.add(std::as_bytes(std::span(numbers)));
  }
  return sum.value();
}

result<kv_layout> layout_of(const graph::graph& g) {
  kv_layout layout;
  for (const graph::node& n : g.nodes) {
    if (n.kind == graph::op::rope && n.inputs[2].valid())
      layout.long_rotation_beyond = n.as<graph::rope_attributes>().original_context;
    if (n.kind == graph::op::attention) {
      const auto& a = n.as<graph::attention_attributes>();
      if (!a.causal) continue;
      if (a.rope && n.inputs[graph::attention_attributes::long_rope_factors].valid())
        layout.long_rotation_beyond = a.rope->original_context;
      FLYWHEEL_CHECK(enter(layout, a.layer,
                           kv_slot::attending(static_cast<std::int32_t>(a.n_kv_heads),
                                              static_cast<std::int32_t>(a.head_dim), a.window)));
    } else if (n.kind == graph::op::delta_net) {
      const auto& a = n.as<graph::delta_net_attributes>();
      FLYWHEEL_CHECK(enter(layout, a.layer, kv_slot::recurring(a.state_floats())));
    }
  }
  return layout;
}

}  // namespace flywheel::inline v0::detail
