// The small vocabulary that graphs, devices and kernels share.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0 {

/// Non-linear functions. silu(x) = x / (1 + exp(-x)); gelu_tanh is the tanh form of GELU.
enum class activation : std::uint8_t { silu, gelu_tanh, relu };

/// Which elements of a head rotate together: adjacent (2i, 2i+1) as in GGUF llama, or halves (i, i + n_rot/2) as in NeoX.
enum class rope_pairs : std::uint8_t { adjacent, halves };

/// Tokens per page of a KV cache. A page of one layer holds K as [n_kv_heads, head_dim, kv_page_tokens] (transposed, so that
/// scores of neighbouring positions are neighbours), then V as [n_kv_heads, kv_page_tokens, head_dim].
inline constexpr std::int64_t kv_page_tokens = 64;

}  // namespace flywheel::inline v0
