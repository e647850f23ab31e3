// What each operation computes, beyond its inputs. Activations are f32 matrices [rows, cols], one row per token.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>

#include "flywheel/core/config.hpp"
#include "flywheel/core/ops.hpp"

namespace flywheel::inline v0::graph {

/// token_ids() -> [tokens] i32: the ids of the chunk. positions() -> [tokens] i32: where each stands in its sequence.
/// token_types() -> [tokens] i32: which segment it belongs to (of a pair of texts), 0 unless the caller says.
/// embed(table [n_rows, n], i32) -> [tokens, n]: the rows of the table with these numbers.
/// add(a, b): a + b.   select_outputs(x [tokens, n]) -> [outputs, n]: the rows whose results are wanted.
struct no_attributes {};

/// weight() -> the tensor `index` of graph::weights.
struct weight_attributes {
  std::uint32_t index = 0;
};

/// rms_norm(x [r, n], weight?): x / sqrt(mean(x^2) + eps) * weight, for every `group` columns by themselves (0: all n
/// of them), with the same weight [group].   (Zhang & Sennrich 2019)
/// layer_norm(x [r, n], weight [n], bias [n]?): (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; no groups.   (Ba et
/// al. 2016)
struct norm_attributes {
  float eps = 1e-5F;
  std::int64_t group = 0;  ///< Divides n: head_dim for norms of heads.
};

/// linear(x [r, k], w_1 [n_1, k] .. w_m) -> y_i [r, n_i] = norm(x) w_i^T + bias_i (+ residual).
/// Inputs in this order: x, the m weights, with `biases` one per weight (invalid where absent), the norm weight if
/// `norm` (invalid: none; the group is all of x), the residual if `residual` (then there is one output). With `glu`
/// there are two weights and one output: act(y_1) * y_2. With `act` the one output is act(y), without residual. The
/// builder makes plain ones (m = 1); rewrites merge neighbours into the fused forms.
struct linear_attributes {
  std::uint32_t weights = 1;
  bool biases = false;
  std::optional<norm_attributes> norm;
  std::optional<activation> glu;
  std::optional<activation> act;
  bool residual = false;

  [[nodiscard]] std::size_t weight_input(std::size_t i) const noexcept { return 1 + i; }
  [[nodiscard]] std::size_t bias_input(std::size_t i) const noexcept { return 1 + weights + i; }
  [[nodiscard]] std::size_t norm_input() const noexcept { return 1 + std::size_t{weights} * (biases ? 2 : 1); }
  [[nodiscard]] std::size_t residual_input() const noexcept { return norm_input() + (norm ? 1 : 0); }
  [[nodiscard]] std::size_t inputs() const noexcept { return residual_input() + (residual ? 1 : 0); }
};

/// rope(x [r, n_heads * head_dim], factors?, long factors?): rotary position embedding (Su et al. 2021) with linear or
/// YaRN scaling (Peng et al. 2023). Pair i of n_rot/2 at position p turns by the angle p * base^(-2i/n_rot) /
/// factors[i] (1 without factors) * freq_scale; YaRN mixes scaled and unscaled angles between beta_slow and beta_fast
/// turns over the original context, and multiplies cosine and sine by attn_factor * (1 + 0.1 ln(1 / freq_scale)).
/// Sequences that may grow beyond original_context take the long factors where there are any (LongRoPE, Ding et al.
/// 2024).
struct rope_attributes {
  std::int64_t head_dim = 0;
  std::int64_t n_rot = 0;  ///< Elements of a head that rotate: even, at most head_dim.
  rope_pairs pairs = rope_pairs::adjacent;
  double base = 10000;
  double freq_scale = 1;  ///< 1 / scaling factor.
  bool yarn = false;
  double attn_factor = 1;
  double beta_fast = 32, beta_slow = 1;
  std::int64_t original_context = 0;  ///< Positions before YaRN's or LongRoPE's stretching.
  friend bool operator==(const rope_attributes&, const rope_attributes&) = default;
};

/// attention(q [r, n_heads * head_dim], k, v [r, n_kv_heads * head_dim]) -> [r, n_heads * head_dim].
/// Stores k and v in the sequence's cache of `layer`, then softmax(scale q k^T) v over the visible positions. Without k
/// and v it stores nothing and reads what an earlier node of that layer stored. Without `causal` nothing is stored
/// either: every token of a slice sees exactly the tokens of the slice. Always as many inputs as enum `input` has,
/// invalid where not used.
struct attention_attributes {
  enum input : std::size_t {
    q,
    k,
    v,
    rope_factors,  ///< [n_rot / 2]
    long_rope_factors,
    sinks,   ///< [n_heads]: a logit per head that joins the softmax without a value.
    q_norm,  ///< [head_dim]: weights of the heads' norms.
    k_norm,
    v_norm,
    input_count
  };
  std::int64_t layer = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;  ///< Divides n_heads.
  std::int64_t head_dim = 0;
  float scale = 1;
  float softcap = 0;        ///< Scores become softcap * tanh(score / softcap); 0: off.
  std::int64_t window = 0;  ///< Sliding window in positions, the token's own included; 0: off.
  bool causal = true;       ///< False for encoders: no window, temperature, sinks or norms; `layer` means nothing.
  float temperature =
      0;  ///< Queries at position p: times 1 + temperature ln(1 + floor(p / temperature_length)); 0: off.
  std::int64_t temperature_length = 0;
  std::optional<rope_attributes> rope;           ///< Rotate q and k first (set by the rewrite).
  std::array<std::optional<float>, 3> norm_eps;  ///< RMS norm of q's, k's, v's heads before that (by the rewrite).
};

/// delta_net(qkv [r, channels()], z [r, values()], beta, alpha [r, n_v_heads], taps [channels(), conv_kernel],
/// dt, a [n_v_heads], norm [head_v_dim]) -> [r, values()]: a gated delta-net layer (Yang, Kautz & Hatamizadeh 2025)
/// between its projections; kernels/delta_net/delta_net.hpp states the formula. Each sequence has a state of `layer`:
/// the last conv_kernel - 1 rows of qkv, then S [n_v_heads, head_k_dim, head_v_dim].
struct delta_net_attributes {
  std::int64_t layer = 0;
  std::int64_t n_k_heads = 0;
  std::int64_t n_v_heads = 0;  ///< A multiple of n_k_heads; value head h uses key head h mod n_k_heads.
  std::int64_t head_k_dim = 0;
  std::int64_t head_v_dim = 0;
  std::int64_t conv_kernel = 0;  ///< Rows that the causal convolution sees, the token's own included: 1 to 16.
  float eps = 1e-6F;             ///< Of the norms of q, k and the output.

  [[nodiscard]] std::int64_t values() const noexcept { return n_v_heads * head_v_dim; }
  [[nodiscard]] std::int64_t channels() const noexcept { return 2 * n_k_heads * head_k_dim + values(); }
  [[nodiscard]] std::int64_t state_floats() const noexcept {
    return (conv_kernel - 1) * channels() + n_v_heads * head_k_dim * head_v_dim;
  }
};

/// glu(gate [r, n] or [r, 1], up [r, n]): act(gate) * up, one gate for a whole row if it has one column; with
/// clamped_swish act(gate) * (clamp(up, -7, 7) + 1).   (Shazeer 2020)
struct glu_attributes {
  activation act = activation::silu;
};

/// activate(x): act(x).
struct activate_attributes {
  activation act = activation::silu;
};

/// scale(x, weight [1]?): factor * weight * x.
struct scale_attributes {
  float factor = 1;
};

/// softcap(x): cap * tanh(x / cap).
struct softcap_attributes {
  float cap = 1;
};

/// columns(x [r, n]) -> [r, count], columns first .. first + count - 1; with a step, of every `step` columns by
/// themselves: [r, n / step * count].
struct columns_attributes {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t step = 0;  ///< Divides n; 0: n.
};

/// What a router's logits become before experts are chosen: softmax over all of them, or each one's sigmoid.
enum class router_scores : std::uint8_t { softmax, sigmoid };

/// moe_ffn(x [r, n], router logits [r, n_expert], experts) -> sum over the chosen experts e of
/// weight_e * down_e(glu(gate_e x, up_e x)) (+ residual). Chosen are the n_used experts with the largest score +
/// selection bias; weight_e = score_e, divided by the sum of the chosen ones if `renormalize`, times `scale` and
/// expert_scale[e]. A softmax over the chosen logits alone is the renormalized softmax over all.
/// Always as many inputs as enum `input` has; those from `residual` on may be invalid.
struct moe_attributes {
  enum input : std::size_t {
    x,
    router,
    gate,  ///< [n_expert, ff, n]
    up,    ///< [n_expert, ff, n]
    down,  ///< [n_expert, n, ff]
    residual,
    gate_bias,  ///< [n_expert, ff]
    up_bias,
    down_bias,       ///< [n_expert, n]
    selection_bias,  ///< [n_expert]
    expert_scale,    ///< [n_expert]
    input_count
  };
  std::int64_t n_expert = 0;
  std::int64_t n_used = 0;
  router_scores scores = router_scores::softmax;
  bool renormalize = true;
  float scale = 1;
  activation act = activation::silu;
  /// Points (see tap_attributes) at which the experts' rows of x, and of what goes into `down`, are shown.
  std::optional<std::uint32_t> tap_x, tap_hidden;
};

/// tap(x) -> x, which the run's observer is shown as rows of the point with this number (insert_taps).
struct tap_attributes {
  std::uint32_t point = 0;
};

using op_attributes =
    std::variant<no_attributes, weight_attributes, norm_attributes, linear_attributes, rope_attributes,
                 attention_attributes, delta_net_attributes, glu_attributes, activate_attributes, scale_attributes,
                 softcap_attributes, columns_attributes, moe_attributes, tap_attributes>;

}  // namespace flywheel::inline v0::graph
