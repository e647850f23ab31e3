// What a model remembers of a sequence, layer by layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/graph/graph.hpp"

namespace flywheel::inline v0::detail {

/// One layer of the cache.
struct kv_slot {
  enum class kind : std::uint8_t {
    none,       ///< Nothing: the layer uses another one's keys and values, or has no memory.
    attention,  ///< Keys and values of positions, in pages.
    recurrent,  ///< One state, whatever the length.
  };
  kind what = kind::none;
  std::int32_t n_kv_heads = 0, head_dim = 0;  ///< attention
  std::int64_t window = 0;        ///< attention: how many positions a token sees, its own included; 0: all of them.
  std::int64_t state_floats = 0;  ///< recurrent
  friend bool operator==(const kv_slot&, const kv_slot&) = default;

  [[nodiscard]] static kv_slot attending(std::int32_t n_kv_heads, std::int32_t head_dim, std::int64_t window = 0) {
    return {kind::attention, n_kv_heads, head_dim, window, 0};
  }
  [[nodiscard]] static kv_slot recurring(std::int64_t state_floats) { return {kind::recurrent, 0, 0, 0, state_floats}; }
};

struct kv_layout {
  std::vector<kv_slot> slots;  ///< By layer.
  /// Sequences that may grow beyond this many positions store keys that are rotated otherwise (LongRoPE): no use to
  /// those that may not. 0: all sequences rotate alike.
  std::int64_t long_rotation_beyond = 0;
  friend bool operator==(const kv_layout&, const kv_layout&) = default;

  /// Which of the two rotations a sequence has that may grow to n_ctx positions.
  [[nodiscard]] bool rotates_long(std::int64_t n_ctx) const noexcept {
    return long_rotation_beyond > 0 && n_ctx > long_rotation_beyond;
  }
  /// Of the slots: tells files of another layout apart.
  [[nodiscard]] std::uint64_t digest() const noexcept;
};

/// The layout that a graph's nodes ask for. Nodes that name the same layer share its slot, which remembers as far back
/// as the one that sees most. Error: invalid_argument when they contradict each other.
[[nodiscard]] result<kv_layout> layout_of(const graph::graph& g);

}  // namespace flywheel::inline v0::detail
