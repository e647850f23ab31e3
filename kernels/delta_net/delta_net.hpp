// Gated delta rule (Yang, Kautz & Hatamizadeh 2025, "Gated Delta Networks") with short convolution and output gate: one
// head of a delta-net layer between its projections. For token t, value head h, key head kh = h mod n_k_heads:
//
//   c      = silu(sum_j taps[j] * x[t - conv_kernel + 1 + j])     x: rows of qkv, before token 0 the tail of the state
//   q, k   = c[q of kh] / |c[q of kh]| / sqrt(head_k_dim),  c[k of kh] / |c[k of kh]|,  |y| = sqrt(sum y^2 + norm_eps)
//   decay  = exp(a[h] softplus(alpha[t, h] + dt[h])),  beta = sigmoid(beta[t, h])
//   delta  = beta (c[v of h] - decay S^T k)
//   S     <- decay S + k delta^T                                  S [head_k_dim, head_v_dim]
//   out    = rms_norm(S^T q, norm) * silu(z[t, h])
//
// Tokens follow each other one by one, each in the same order of operations: results do not depend on how tokens are
// cut into calls, nor on threads. S^T q is computed as decay (old S)^T q + (k . q) delta, so that one walk over S does
// both products of a token with the update of the one before: seven operations per element of S and token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::kernels {

/// Of all heads; a call computes one. Rows follow each other without gaps.
struct delta_net_args {
  const float* qkv = nullptr;    ///< [n_tokens, channels()]: q [n_k_heads, head_k_dim], k the same, v [values()]
  const float* z = nullptr;      ///< [n_tokens, values()], values() being [n_v_heads, head_v_dim]
  const float* beta = nullptr;   ///< [n_tokens, n_v_heads]
  const float* alpha = nullptr;  ///< [n_tokens, n_v_heads]
  const float* taps = nullptr;   ///< [conv_kernel, channels()], the last row for the token itself
  const float* dt = nullptr;     ///< [n_v_heads]
  const float* a = nullptr;      ///< [n_v_heads]
  const float* norm = nullptr;   ///< [head_v_dim]
  /// The tail [conv_kernel - 1, channels()] of qkv before token 0, oldest first, then S of each value head.
  const float* state = nullptr;
  float* next_state = nullptr;  ///< The same after the last token; other memory than `state`.
  float* out = nullptr;         ///< [n_tokens, values()]
  std::int64_t n_tokens = 0;    ///< At least 1.
  std::int64_t n_k_heads = 0;
  std::int64_t n_v_heads = 0;    ///< A multiple of n_k_heads.
  std::int64_t head_k_dim = 0;   ///< A multiple of delta_net_granularity.
  std::int64_t head_v_dim = 0;   ///< A multiple of delta_net_granularity.
  std::int64_t conv_kernel = 0;  ///< 1 .. longest_conv_kernel
  float norm_eps = 0;

  [[nodiscard]] std::int64_t values() const noexcept { return n_v_heads * head_v_dim; }
  [[nodiscard]] std::int64_t channels() const noexcept { return 2 * n_k_heads * head_k_dim + values(); }
  [[nodiscard]] std::int64_t tail_floats() const noexcept { return (conv_kernel - 1) * channels(); }
  /// Where S of a head begins in the state.
  [[nodiscard]] std::int64_t head_state(std::int64_t head) const noexcept {
    return tail_floats() + head * head_k_dim * head_v_dim;
  }
  /// First channels of the three parts of a value head.
  [[nodiscard]] std::int64_t q_channel(std::int64_t head) const noexcept { return head % n_k_heads * head_k_dim; }
  [[nodiscard]] std::int64_t k_channel(std::int64_t head) const noexcept {
    return n_k_heads * head_k_dim + q_channel(head);
  }
  [[nodiscard]] std::int64_t v_channel(std::int64_t head) const noexcept {
    return 2 * n_k_heads * head_k_dim + head * head_v_dim;
  }
  /// Row t of qkv, t >= 1 - conv_kernel: negative ones lie in the tail.
  [[nodiscard]] const float* row(std::int64_t t) const noexcept {
    return t < 0 ? state + (conv_kernel - 1 + t) * channels() : qkv + t * channels();
  }
};

inline constexpr std::int64_t delta_net_granularity = 16;
inline constexpr std::int64_t longest_conv_kernel = 16;

/// Floats of scratch that one call needs.
using delta_net_scratch_fn = std::size_t (*)(const delta_net_args& args);
/// All tokens of value head `head`: its part of out and of next_state (the tails of q and k belong to the first
/// n_k_heads heads). Calls for different heads may run at the same time, each with its own scratch (64-byte aligned).
using delta_net_fn = void (*)(const delta_net_args& args, std::int64_t head, float* scratch);

}  // namespace flywheel::inline v0::kernels
