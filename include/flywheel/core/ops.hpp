// The small vocabulary that graphs, devices and kernels share.
#pragma once

#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0 {

/// Non-linear functions. silu(x) = x / (1 + exp(-x)); gelu_tanh is the tanh form of GELU; sigmoid(x) = 1 / (1 +
/// exp(-x)); clamped_swish(x) = m / (1 + exp(-1.702 m)) with m = min(x, 7), whose gated form is act(gate) * (clamp(up,
/// -7, 7) + 1) (gpt-oss, OpenAI 2025).
enum class activation : std::uint8_t { silu, gelu_tanh, relu, sigmoid, clamped_swish };

/// How products with quantized weights quantize their activations to int8, in blocks of 32. per_block: each block has
/// its own f32 scale. power_of_two: one f32 scale per row, times a power of two per block: faster, and up to twice as
/// coarse. automatic: what measured perplexity allows for the format (docs/performance.md). NPU formats: one way only.
enum class activation_scales : std::uint8_t { automatic, per_block, power_of_two };

/// Which elements of a head rotate together: adjacent (2i, 2i+1) as in GGUF llama, or halves (i, i + n_rot/2) as in
/// NeoX.
enum class rope_pairs : std::uint8_t { adjacent, halves };

/// Tokens per page of a KV cache. Only kernels know what is in a page: kernels/attention/page.hpp.
inline constexpr std::int64_t kv_page_tokens = 64;

}  // namespace flywheel::inline v0
