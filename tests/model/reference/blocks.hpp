// The mathematics that architectures share, in double precision and plain loops: written from the models' public
// descriptions and independent of the library's graph. A block takes all tokens of one sequence, position = row index.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>

#include "model/reference/model_file.hpp"

namespace flywheel::test::reference {

// --- vectors ---------------------------------------------------------------------------------------------------------

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }
/// The tanh form, Hendrycks and Gimpel 2016.
inline double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

inline void softmax(std::span<double> x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
}

inline rows add(rows a, const rows& b, double factor = 1) {
  for (std::size_t t = 0; t < a.size(); ++t)
    for (std::size_t i = 0; i < a[t].size(); ++i) a[t][i] += factor * b[t][i];
  return a;
}
inline rows multiply(rows a, const rows& b) {
  for (std::size_t t = 0; t < a.size(); ++t)
    for (std::size_t i = 0; i < a[t].size(); ++i) a[t][i] *= b[t][i];
  return a;
}
inline rows each(rows x, const std::function<double(double)>& f) {
  for (vec& row : x)
    for (double& v : row) v = f(v);
  return x;
}
inline rows scaled(rows x, double factor) {
  return each(std::move(x), [factor](double v) { return v * factor; });
}
/// Columns [first, first + count) of every row.
inline rows columns(const rows& x, std::size_t first, std::size_t count) {
  rows out;
  for (const vec& row : x) {
    const auto begin = row.begin() + static_cast<std::ptrdiff_t>(first);
    out.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(count));
  }
  return out;
}

inline vec times(const tensor& w, std::span<const double> x) {
  if (x.size() != w.cols) throw std::runtime_error("a matrix and a vector do not fit");
  vec y(w.row_count());
  for (std::size_t i = 0; i < y.size(); ++i)
    y[i] = std::inner_product(x.begin(), x.end(), w.values.begin() + static_cast<std::ptrdiff_t>(i * w.cols), 0.0);
  return y;
}
/// x W^T + bias, per row.
inline rows linear(const tensor& w, const rows& x, const vec& bias = {}) {
  rows y;
  for (const vec& row : x) {
    y.push_back(times(w, row));
    for (std::size_t i = 0; i < bias.size(); ++i) y.back()[i] += bias[i];
  }
  return y;
}
inline rows embedding(const tensor& table, std::span<const std::int32_t> ids) {
  rows x;
  for (std::int32_t id : ids) x.push_back(table.slice(static_cast<std::size_t>(id), 1).values);
  return x;
}

// --- norms -----------------------------------------------------------------------------------------------------------

/// x / sqrt(mean(x^2) + eps) * weight over groups of `group` columns (0: the row); no weight: 1.
inline rows rms_norm(rows x, const vec& weight, double eps, std::size_t group = 0) {
  for (vec& row : x) {
    const std::size_t n = group ? group : row.size();
    for (std::size_t first = 0; first < row.size(); first += n) {
      double square = 0;
      for (std::size_t i = 0; i < n; ++i) square += row[first + i] * row[first + i];
      const double factor = 1 / std::sqrt(square / static_cast<double>(n) + eps);
      for (std::size_t i = 0; i < n; ++i) row[first + i] *= factor * (weight.empty() ? 1 : weight.at(i));
    }
  }
  return x;
}
/// (x - mean) / sqrt(variance + eps) * weight + bias.
inline rows layer_norm(rows x, const vec& weight, const vec& bias, double eps) {
  for (vec& row : x) {
    const double n = static_cast<double>(row.size());
    const double mean = std::accumulate(row.begin(), row.end(), 0.0) / n;
    double square = 0;
    for (double v : row) square += (v - mean) * (v - mean);
    for (std::size_t i = 0; i < row.size(); ++i)
      row[i] = (row[i] - mean) / std::sqrt(square / n + eps) * weight.at(i) + bias.at(i);
  }
  return x;
}

// --- rotary positions ------------------------------------------------------------------------------------------------

enum class pairs : std::uint8_t { adjacent, halves };  ///< (2i, 2i+1), or (i, i + width/2).

/// Su et al. 2021; YaRN: Peng et al. 2023.
struct rotary {
  reference::pairs pairs = reference::pairs::adjacent;
  std::size_t width = 0;  ///< Leading columns of a head that turn; the others stay.
  double base = 10000;
  double factor = 1;  ///< Of linear scaling and of YaRN's interpolation.
  vec divisors;       ///< Of the frequencies, [width / 2]; empty: 1.
  bool yarn = false;
  double original_context = 0, beta_fast = 32, beta_slow = 1;
  double magnitude = 1;  ///< Of sine and cosine.

  /// Radians per position of pair i.
  [[nodiscard]] double frequency(std::size_t i) const {
    const double n = static_cast<double>(width);
    const double plain = std::pow(base, -2 * static_cast<double>(i) / n) / (divisors.empty() ? 1 : divisors.at(i));
    if (!yarn) return plain / factor;
    // Pairs that turn more than beta_fast times within the original context keep their frequency; those that turn less
    // than beta_slow times are interpolated; a ramp lies between them.
    const auto pair_turning = [&](double turns) {
      return n * std::log(original_context / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    const double low = std::max(0.0, std::floor(pair_turning(beta_fast)));
    const double high = std::min(n - 1, std::ceil(pair_turning(beta_slow)));
    const double ramp = std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
    return plain * (1 - ramp) + plain / factor * ramp;
  }
};

/// What the file says; `head_dim` where it does not say how many columns turn.
inline rotary rotary_of(const model_file& m, pairs how, std::size_t head_dim) {
  rotary r;
  r.pairs = how;
  r.width = m.count("rope.dimension_count", head_dim);
  r.base = m.number("rope.freq_base", 10000);
  const std::string kind = m.text("rope.scaling.type", "none");
  if (kind != "none") r.factor = m.number("rope.scaling.factor");
  r.divisors = m.values_or_none("rope_freqs.weight");
  r.yarn = kind == "yarn";
  if (r.yarn) {
    r.original_context = m.number("rope.scaling.original_context_length");
    r.beta_fast = m.number("rope.scaling.yarn_beta_fast", 32);
    r.beta_slow = m.number("rope.scaling.yarn_beta_slow", 1);
    const auto magnitude = [&](double scale) { return 1 + 0.1 * scale * std::log(r.factor); };
    r.magnitude = magnitude(1) / magnitude(m.number("rope.scaling.yarn_log_multiplier", 0));
  }
  r.magnitude *= m.number("rope.scaling.attn_factor", 1);
  return r;
}

inline rows rotate(rows x, const rotary& r, std::size_t head_dim) {
  for (std::size_t position = 0; position < x.size(); ++position)
    for (std::size_t head = 0; head < x[position].size(); head += head_dim)
      for (std::size_t i = 0; i < r.width / 2; ++i) {
        const bool adjacent = r.pairs == pairs::adjacent;
        double& a = x[position][head + (adjacent ? 2 * i : i)];
        double& b = x[position][head + (adjacent ? 2 * i + 1 : i + r.width / 2)];
        const double angle = static_cast<double>(position) * r.frequency(i);
        const double c = r.magnitude * std::cos(angle), s = r.magnitude * std::sin(angle);
        const double turned = a * c - b * s;
        b = a * s + b * c;
        a = turned;
      }
  return x;
}

// --- attention -------------------------------------------------------------------------------------------------------

struct attention_shape {
  std::size_t heads = 0, kv_heads = 0, head_dim = 0;
  double scale = 0;        ///< Of q k^T; 0: 1 / sqrt(head_dim).
  std::size_t window = 0;  ///< A query sees this many positions, its own included; 0: all.
  bool causal = true;
};

/// softmax(scale q k^T) v per head; kv head h serves heads / kv_heads consecutive heads. Returns [tokens][heads *
/// head_dim].
inline rows attention(const rows& q, const rows& k, const rows& v, const attention_shape& s) {
  const double scale = s.scale != 0 ? s.scale : 1 / std::sqrt(static_cast<double>(s.head_dim));
  rows out(q.size(), vec(s.heads * s.head_dim, 0.0));
  for (std::size_t t = 0; t < q.size(); ++t) {
    const std::size_t end = s.causal ? t + 1 : k.size();
    const std::size_t begin = s.window != 0 && t + 1 > s.window ? t + 1 - s.window : 0;
    for (std::size_t h = 0; h < s.heads; ++h) {
      const std::size_t at = h * s.head_dim, kv_at = h / (s.heads / s.kv_heads) * s.head_dim;
      vec scores;
      for (std::size_t p = begin; p < end; ++p) {
        double dot = 0;
        for (std::size_t i = 0; i < s.head_dim; ++i) dot += q[t].at(at + i) * k[p].at(kv_at + i);
        scores.push_back(scale * dot);
      }
      softmax(scores);
      for (std::size_t p = begin; p < end; ++p)
        for (std::size_t i = 0; i < s.head_dim; ++i) out[t][at + i] += scores[p - begin] * v[p].at(kv_at + i);
    }
  }
  return out;
}

// --- feed-forward ----------------------------------------------------------------------------------------------------

using activation = double (*)(double);

/// down(act(gate x) * up x).
inline rows gated(const rows& x, const tensor& gate, const tensor& up, const tensor& down, activation act) {
  return linear(down, multiply(each(linear(gate, x), act), linear(up, x)));
}
/// The block's `ffn_gate`, `ffn_up` and `ffn_down`, with a suffix such as "_shexp".
inline rows gated(const model_file& m, const std::string& block, const std::string& suffix, const rows& x,
                  activation act) {
  return gated(x, m.get(block + "ffn_gate" + suffix + ".weight"), m.get(block + "ffn_up" + suffix + ".weight"),
               m.get(block + "ffn_down" + suffix + ".weight"), act);
}

/// Stacked experts: softmax over all router logits, the `used` largest of them, renormalised to a sum of 1. Gate and up
/// may be one tensor (gate rows first); experts may have an output scale. `gap` becomes the smallest distance between a
/// chosen and a rejected router logit, if that is smaller: below the arithmetic's noise another expert may be taken.
inline rows mixture(const model_file& m, const std::string& block, const rows& router_logits, const rows& x,
                    activation act, double& gap) {
  const std::size_t count = m.count("expert_count"), used = m.count("expert_used_count");
  const bool fused = m.has(block + "ffn_gate_up_exps.weight");
  const tensor& first = m.get(block + (fused ? "ffn_gate_up_exps.weight" : "ffn_gate_exps.weight"));
  const tensor& down = m.get(block + "ffn_down_exps.weight");
  const std::size_t width = down.cols, n_embd = down.row_count() / count;
  const vec output_scale = m.values_or_none(block + "ffn_down_exps.scale");

  rows out(x.size(), vec(n_embd, 0.0));
  for (std::size_t t = 0; t < x.size(); ++t) {
    const vec& logits = router_logits[t];
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    if (used < count) gap = std::min(gap, logits[order[used - 1]] - logits[order[used]]);
    vec weights = logits;
    softmax(weights);
    double sum = 0;
    for (std::size_t i = 0; i < used; ++i) sum += weights[order[i]];
    for (std::size_t i = 0; i < used; ++i) {
      const std::size_t e = order[i];
      const tensor gate = first.slice(e * (fused ? 2 : 1) * width, width);
      const tensor up =
          fused ? first.slice((2 * e + 1) * width, width) : m.get(block + "ffn_up_exps.weight").slice(e * width, width);
      const rows y = gated({x[t]}, gate, up, down.slice(e * n_embd, n_embd), act);
      const double weight = weights[e] / sum * (output_scale.empty() ? 1 : output_scale.at(e));
      for (std::size_t j = 0; j < n_embd; ++j) out[t][j] += weight * y[0][j];
    }
  }
  return out;
}

// --- a model's ends --------------------------------------------------------------------------------------------------

struct prediction {
  rows hidden;  ///< After the final norm.
  rows logits;
  double router_gap = std::numeric_limits<double>::infinity();  ///< See mixture().
};

inline std::string block_name(std::size_t layer) { return "blk." + std::to_string(layer) + "."; }

/// Final norm and the output matrix, which is the embedding table where the file has none.
inline void finish(const model_file& m, const rows& x, prediction& p) {
  p.hidden = rms_norm(x, m.values("output_norm.weight"), m.number("attention.layer_norm_rms_epsilon"));
  p.logits = linear(m.get(m.has("output.weight") ? "output.weight" : "token_embd.weight"), p.hidden);
}

}  // namespace flywheel::test::reference
