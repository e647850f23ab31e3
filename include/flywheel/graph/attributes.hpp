// What each operation computes, beyond its inputs. Activations are f32 matrices [rows, cols], one row per token.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "flywheel/core/config.hpp"
#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::graph {

/// token_ids() -> [tokens] i32: the ids of the chunk.
/// embed(table [n_vocab, n], ids) -> [tokens, n]: row `id` of the table.
/// add(a, b): a + b.   select_outputs(x [tokens, n]) -> [outputs, n]: the rows whose results are wanted.
struct no_attributes {};

/// weight() -> the tensor `index` of graph::weights.
struct weight_attributes {
  std::uint32_t index = 0;
};

/// rms_norm(x, weight [n]): x / sqrt(mean(x^2) + eps) * weight.   (Zhang & Sennrich 2019)
struct norm_attributes {
  float eps = 1e-5F;
};

/// linear(x [r, k], w_1 [n_1, k] .. w_m) -> y_i [r, n_i] = norm(x) w_i^T + bias_i (+ residual).
/// Inputs in this order: x, the m weights, with `biases` one per weight (invalid where absent), the norm weight if
/// `norm`, the residual if `residual` (then there is one output). With `glu` there are two weights and one output:
/// act(y_1) * y_2. The builder makes plain ones (m = 1); rewrites merge neighbours into the fused forms.
struct linear_attributes {
  std::uint32_t weights = 1;
  bool biases = false;
  std::optional<norm_attributes> norm;
  std::optional<activation> glu;
  bool residual = false;

  [[nodiscard]] std::size_t weight_input(std::size_t i) const noexcept { return 1 + i; }
  [[nodiscard]] std::size_t bias_input(std::size_t i) const noexcept { return 1 + weights + i; }
  [[nodiscard]] std::size_t norm_input() const noexcept { return 1 + std::size_t{weights} * (biases ? 2 : 1); }
  [[nodiscard]] std::size_t residual_input() const noexcept { return norm_input() + (norm ? 1 : 0); }
  [[nodiscard]] std::size_t inputs() const noexcept { return residual_input() + (residual ? 1 : 0); }
};

/// rope(x [r, n_heads * head_dim], factors?): rotary position embedding (Su et al. 2021) with linear or YaRN scaling
/// (Peng et al. 2023). Pair i of n_rot/2 at position p turns by the angle p * base^(-2i/n_rot) / factors[i] (1 without
/// factors) * freq_scale; YaRN mixes scaled and unscaled angles between beta_slow and beta_fast turns over the original
/// context, and multiplies cosine and sine by attn_factor * (1 + 0.1 ln(1 / freq_scale)).
struct rope_attributes {
  std::int64_t head_dim = 0;
  std::int64_t n_rot = 0;  ///< Elements of a head that rotate: even, at most head_dim.
  rope_pairs pairs = rope_pairs::adjacent;
  double base = 10000;
  double freq_scale = 1;  ///< 1 / scaling factor.
  bool yarn = false;
  double attn_factor = 1;
  double beta_fast = 32, beta_slow = 1;
  std::int64_t original_context = 0;  ///< Positions before YaRN's stretching.
  friend bool operator==(const rope_attributes&, const rope_attributes&) = default;
};

/// attention(q [r, n_heads * head_dim], k, v [r, n_kv_heads * head_dim], rope factors?) -> [r, n_heads * head_dim].
/// Stores k and v in the sequence's cache of `layer`, then softmax(scale q k^T) v over the visible positions.
/// Always four inputs; the fourth is invalid unless `rope` is set and has factors.
struct attention_attributes {
  std::int64_t layer = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;  ///< Divides n_heads.
  std::int64_t head_dim = 0;
  float scale = 1;
  float softcap = 0;                    ///< Scores become softcap * tanh(score / softcap); 0: off.
  std::int64_t window = 0;              ///< Sliding window in positions, the token's own included; 0: off.
  std::optional<rope_attributes> rope;  ///< Rotate q and k first (set by the rewrite).
};

/// glu(gate, up): act(gate) * up.   (Shazeer 2020)
struct glu_attributes {
  activation act = activation::silu;
};

/// scale(x): factor * x.
struct scale_attributes {
  float factor = 1;
};

/// moe_ffn(x [r, n], router logits [r, n_expert], gate [n_expert, ff, n], up, down [n_expert, n, ff], residual?) ->
/// sum over the `n_used` experts with the largest logits of weight_e * down_e(act(gate_e x) * up_e x) (+ residual).
/// Weights: softmax over all experts, then the chosen ones divided by their sum if `renormalize`. Always six inputs;
/// the residual may be invalid.
struct moe_attributes {
  std::int64_t n_expert = 0;
  std::int64_t n_used = 0;
  bool renormalize = true;
  activation act = activation::silu;
};

using op_attributes =
    std::variant<no_attributes, weight_attributes, norm_attributes, linear_attributes, rope_attributes,
                 attention_attributes, glu_attributes, scale_attributes, moe_attributes>;

}  // namespace flywheel::inline v0::graph
