// The meaning of a graph, written down a second time: every operation in double precision, one loop per formula, for
// one sequence from position 0. Slow and independent of devices and kernels; the yardstick of their tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::test {

class reference_graph {
 public:
  using matrix = std::vector<double>;  ///< [rows, cols]

  reference_graph(const graph::graph& g, const io::archive& file) : g_(g) {
    for (const graph::weight_info& w : g.weights) {
      const tensor_view view = file.view(*file.find(w.name)).value();
      std::vector<float> values(static_cast<std::size_t>(view.dims.elements()));
      formats::decode(view, values).value();
      matrix& used = weights_.emplace_back();
      const std::size_t rank = view.dims.rank(), cols = static_cast<std::size_t>(w.dims.cols());
      const std::size_t matrices = rank < 3 ? 1 : static_cast<std::size_t>(view.dims[0]);
      const std::size_t all = values.size() / matrices;
      const std::size_t part = static_cast<std::size_t>(w.dims.elements()) / matrices;
      for (std::size_t m = 0; m < matrices; ++m) {
        const auto from =
            values.begin() + static_cast<std::ptrdiff_t>(m * all + static_cast<std::size_t>(w.first_row) * cols);
        used.insert(used.end(), from, from + static_cast<std::ptrdiff_t>(part));
      }
    }
  }

  std::int64_t n_ctx = 0;  ///< Positions the sequence may grow to.
  /// What went into each tensor during run(), by name and expert (0: has none): [rows, cols].
  std::map<std::pair<std::string, std::int64_t>, matrix> inputs;

  /// Results of the graph's first output for these tokens; `token_types` empty: all 0.
  matrix run(std::span<const std::int32_t> ids, std::span<const std::int32_t> output_rows,
             std::span<const std::int32_t> token_types = {}) {
    ids_ = ids;
    token_types_ = token_types;
    output_rows_ = output_rows;
    values_.assign(g_.values.size(), {});
    inputs.clear();
    for (const graph::node& n : g_.nodes) evaluate(n);
    return values_[g_.outputs.at(0).index];
  }

 private:
  [[nodiscard]] std::int64_t rows(graph::value v) const {
    return static_cast<std::int64_t>(g_.at(v).rows == graph::row_kind::outputs ? output_rows_.size() : ids_.size());
  }
  [[nodiscard]] const matrix* given(const graph::node& n, std::size_t i) const {
    return n.inputs.at(i).valid() ? &in(n, i) : nullptr;
  }
  [[nodiscard]] const matrix& in(const graph::node& n, std::size_t i) const {
    const graph::value v = n.inputs.at(i);
    const graph::node& producer = g_.nodes[g_.at(v).producer];
    if (producer.kind == graph::op::weight) return weights_[producer.as<graph::weight_attributes>().index];
    return values_[v.index];
  }
  static double act(activation kind, double x) {
    switch (kind) {
      case activation::silu:
        return x / (1 + std::exp(-x));
      case activation::gelu_tanh:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
      case activation::relu:
        return std::max(0.0, x);
      case activation::sigmoid:
        return 1 / (1 + std::exp(-x));
      case activation::clamped_swish:
        return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
    }
    return x;
  }
  static double gated(activation kind, double gate, double up) {
    return act(kind, gate) * (kind == activation::clamped_swish ? std::clamp(up, -7.0, 7.0) + 1 : up);
  }
  /// Every n numbers by themselves; w [n], or null.
  static matrix rms_norm(const matrix& x, const matrix* w, std::size_t n, double eps) {
    matrix y(x.size());
    for (std::size_t r = 0; r < x.size() / n; ++r) {
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) sum += x[r * n + i] * x[r * n + i];
      for (std::size_t i = 0; i < n; ++i)
        y[r * n + i] = x[r * n + i] / std::sqrt(sum / static_cast<double>(n) + eps) * (w ? (*w)[i] : 1);
    }
    return y;
  }
  static matrix layer_norm(const matrix& x, const matrix& w, const matrix* bias, double eps) {
    matrix y(x.size());
    const std::size_t n = w.size();
    for (std::size_t r = 0; r < x.size() / n; ++r) {
      double mean = 0, variance = 0;
      for (std::size_t i = 0; i < n; ++i) mean += x[r * n + i] / static_cast<double>(n);
      for (std::size_t i = 0; i < n; ++i) variance += std::pow(x[r * n + i] - mean, 2) / static_cast<double>(n);
      for (std::size_t i = 0; i < n; ++i)
        y[r * n + i] = (x[r * n + i] - mean) / std::sqrt(variance + eps) * w[i] + (bias ? (*bias)[i] : 0);
    }
    return y;
  }
  /// What number of row an embedding takes for token t.
  [[nodiscard]] std::size_t row_of(const graph::node& n, std::size_t t) const {
    switch (g_.nodes[g_.at(n.inputs.at(1)).producer].kind) {
      case graph::op::positions:
        return t;
      case graph::op::token_types:
        return token_types_.empty() ? 0 : static_cast<std::size_t>(token_types_[t]);
      default:
        return static_cast<std::size_t>(ids_[t]);
    }
  }
  /// Once for all parts of a fused tensor.
  void note(graph::value weight, std::size_t expert, const matrix& x) {
    const graph::weight_info& w = *g_.weight_of(weight);
    if (w.first_row != 0) return;
    matrix& all = inputs[{w.name, static_cast<std::int64_t>(expert)}];
    all.insert(all.end(), x.begin(), x.end());
  }
  /// x [rows, k] times the transpose of w [n, k].
  static matrix product(const matrix& x, std::span<const double> w, std::size_t n, std::size_t k) {
    matrix y(x.size() / k * n);
    for (std::size_t r = 0; r < x.size() / k; ++r)
      for (std::size_t j = 0; j < n; ++j)
        y[r * n + j] = std::inner_product(w.begin() + static_cast<std::ptrdiff_t>(j * k),
                                          w.begin() + static_cast<std::ptrdiff_t>((j + 1) * k),
                                          x.begin() + static_cast<std::ptrdiff_t>(r * k), 0.0);
    return y;
  }

  void linear(const graph::node& n) {
    const auto& a = n.as<graph::linear_attributes>();
    matrix x = in(n, 0);
    const auto k = static_cast<std::size_t>(g_.at(n.inputs[0]).cols);
    if (a.norm) x = rms_norm(x, given(n, a.norm_input()), k, static_cast<double>(a.norm->eps));
    std::vector<matrix> y;
    for (std::size_t i = 0; i < a.weights; ++i) {
      const matrix& w = in(n, a.weight_input(i));
      note(n.inputs[a.weight_input(i)], 0, x);
      y.push_back(product(x, w, w.size() / k, k));
      if (a.biases && n.inputs[a.bias_input(i)].valid()) {
        const matrix& bias = in(n, a.bias_input(i));
        for (std::size_t j = 0; j < y[i].size(); ++j) y[i][j] += bias[j % bias.size()];
      }
    }
    if (a.glu) {
      for (std::size_t j = 0; j < y[0].size(); ++j) y[0][j] = gated(*a.glu, y[0][j], y[1][j]);
      y.pop_back();
    }
    if (a.act)
      for (double& e : y[0]) e = act(*a.act, e);
    if (a.residual)
      for (std::size_t j = 0; j < y[0].size(); ++j) y[0][j] += in(n, a.residual_input())[j];
    for (std::size_t i = 0; i < y.size(); ++i) values_[n.outputs[i].index] = y[i];
  }

  matrix rope(matrix x, const graph::rope_attributes& a, const matrix* factors, const matrix* long_factors,
              std::size_t cols) const {
    if (long_factors && n_ctx > a.original_context) factors = long_factors;
    const double pi = std::acos(-1.0);
    const auto d = static_cast<std::size_t>(a.head_dim), half = static_cast<std::size_t>(a.n_rot / 2);
    const auto n = static_cast<double>(a.n_rot);
    const auto turns_at = [&](double beta) {
      return n * std::log(static_cast<double>(a.original_context) / (beta * 2 * pi)) / (2 * std::log(a.base));
    };
    for (std::size_t t = 0; t < x.size() / cols; ++t)
      for (std::size_t h = 0; h < cols / d; ++h)
        for (std::size_t i = 0; i < half; ++i) {
          double theta = static_cast<double>(t) * std::pow(a.base, -2 * static_cast<double>(i) / n);
          if (factors) theta /= (*factors)[i];
          double size = a.attn_factor;
          if (a.yarn) {
            const double low = std::max(0.0, std::floor(turns_at(a.beta_fast)));
            const double high = std::min(n - 1, std::ceil(turns_at(a.beta_slow)));
            const double keep = 1 - std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
            theta = theta * a.freq_scale * (1 - keep) + theta * keep;
            size *= 1 + 0.1 * std::log(1 / a.freq_scale);
          } else {
            theta *= a.freq_scale;
          }
          const bool halves = a.pairs == rope_pairs::halves;
          double& p = x[t * cols + h * d + (halves ? i : 2 * i)];
          double& q = x[t * cols + h * d + (halves ? i + half : 2 * i + 1)];
          const double p0 = p, q0 = q;
          p = size * (p0 * std::cos(theta) - q0 * std::sin(theta));
          q = size * (p0 * std::sin(theta) + q0 * std::cos(theta));
        }
    return x;
  }

  void attention(const graph::node& n) {
    using input = graph::attention_attributes;
    const auto& a = n.as<graph::attention_attributes>();
    const auto d = static_cast<std::size_t>(a.head_dim), heads = static_cast<std::size_t>(a.n_heads);
    const auto kv_heads = static_cast<std::size_t>(a.n_kv_heads), tokens = ids_.size();
    matrix parts[3];  // q, k, v
    for (std::size_t i = 0; i < 3; ++i) {
      if (!n.inputs[i].valid()) continue;
      parts[i] = in(n, i);
      if (a.norm_eps[i])
        parts[i] = rms_norm(parts[i], given(n, input::q_norm + i), d, static_cast<double>(*a.norm_eps[i]));
      if (a.rope && i != input::v)
        parts[i] = rope(parts[i], *a.rope, given(n, input::rope_factors), given(n, input::long_rope_factors),
                        (i == input::q ? heads : kv_heads) * d);
    }
    auto& [q, k, v] = parts;
    if (n.inputs[input::k].valid())
      stored_[a.layer] = {k, v};
    else
      std::tie(k, v) = stored_.at(a.layer);
    const matrix* sinks = given(n, input::sinks);
    matrix out(tokens * heads * d, 0.0);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t kh = h * kv_heads / heads;
        const std::size_t first =
            a.window > 0 && t + 1 > static_cast<std::size_t>(a.window) ? t + 1 - static_cast<std::size_t>(a.window) : 0;
        const std::size_t last = a.causal ? t : tokens - 1;
        std::vector<double> p;
        for (std::size_t s = first; s <= last; ++s) {
          double score = 0;
          for (std::size_t i = 0; i < d; ++i) score += q[(t * heads + h) * d + i] * k[(s * kv_heads + kh) * d + i];
          score *= static_cast<double>(a.scale);
          if (a.temperature != 0)
            score *=
                1 + static_cast<double>(a.temperature) *
                        std::log(1 + std::floor(static_cast<double>(t) / static_cast<double>(a.temperature_length)));
          if (a.softcap > 0) score = static_cast<double>(a.softcap) * std::tanh(score / static_cast<double>(a.softcap));
          p.push_back(score);
        }
        const double top = std::max(*std::max_element(p.begin(), p.end()), sinks ? (*sinks)[h] : -HUGE_VAL);
        double sum = sinks ? std::exp((*sinks)[h] - top) : 0;
        for (double& e : p) sum += e = std::exp(e - top);
        for (std::size_t s = first; s <= last; ++s)
          for (std::size_t i = 0; i < d; ++i)
            out[(t * heads + h) * d + i] += p[s - first] / sum * v[(s * kv_heads + kh) * d + i];
      }
    values_[n.outputs[0].index] = out;
  }

  /// The gated delta rule as its authors write it, one token after the other.
  void delta_net(const graph::node& n) {
    const auto& a = n.as<graph::delta_net_attributes>();
    const matrix &qkv = in(n, 0), &z = in(n, 1), &beta = in(n, 2), &alpha = in(n, 3);
    const matrix &taps = in(n, 4), &dt = in(n, 5), &decay = in(n, 6), &weight = in(n, 7);
    const auto channels = static_cast<std::size_t>(a.channels()), kernel = static_cast<std::size_t>(a.conv_kernel);
    const auto heads = static_cast<std::size_t>(a.n_v_heads), key_heads = static_cast<std::size_t>(a.n_k_heads);
    const auto dk = static_cast<std::size_t>(a.head_k_dim), dv = static_cast<std::size_t>(a.head_v_dim);
    const auto eps = static_cast<double>(a.eps);
    matrix out(ids_.size() * heads * dv), state(heads * dk * dv, 0.0);
    for (std::size_t t = 0; t < ids_.size(); ++t) {
      matrix c(channels, 0.0);
      for (std::size_t i = 0; i < channels; ++i) {
        for (std::size_t back = 0; back < kernel && back <= t; ++back)
          c[i] += taps[i * kernel + kernel - 1 - back] * qkv[(t - back) * channels + i];
        c[i] = act(activation::silu, c[i]);
      }
      const auto unit = [&](std::size_t first) {
        matrix x(c.begin() + static_cast<std::ptrdiff_t>(first), c.begin() + static_cast<std::ptrdiff_t>(first + dk));
        const double length = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), eps));
        for (double& e : x) e /= length;
        return x;
      };
      for (std::size_t h = 0; h < heads; ++h) {
        const matrix q = unit(h % key_heads * dk), k = unit((key_heads + h % key_heads) * dk);
        const double* v = c.data() + 2 * key_heads * dk + h * dv;
        const double forget = std::exp(decay[h] * std::log(1 + std::exp(alpha[t * heads + h] + dt[h])));
        const double write = 1 / (1 + std::exp(-beta[t * heads + h]));
        double* s = state.data() + h * dk * dv;
        for (std::size_t e = 0; e < dk * dv; ++e) s[e] *= forget;
        matrix o(dv, 0.0);
        for (std::size_t j = 0; j < dv; ++j) {
          double known = 0;
          for (std::size_t i = 0; i < dk; ++i) known += s[i * dv + j] * k[i];
          for (std::size_t i = 0; i < dk; ++i) s[i * dv + j] += k[i] * write * (v[j] - known);
          for (std::size_t i = 0; i < dk; ++i) o[j] += s[i * dv + j] * q[i] / std::sqrt(static_cast<double>(dk));
        }
        o = rms_norm(o, &weight, dv, eps);
        for (std::size_t j = 0; j < dv; ++j)
          out[(t * heads + h) * dv + j] = o[j] * act(activation::silu, z[(t * heads + h) * dv + j]);
      }
    }
    values_[n.outputs[0].index] = out;
  }

  void moe(const graph::node& n) {
    using input = graph::moe_attributes;
    const auto& a = n.as<graph::moe_attributes>();
    const auto bias = [&](std::size_t i, std::size_t at) { return n.inputs[i].valid() ? in(n, i)[at] : 0.0; };
    const matrix &x = in(n, 0), &router = in(n, 1), &gate = in(n, 2), &up = in(n, 3), &down = in(n, 4);
    const auto k = static_cast<std::size_t>(g_.at(n.inputs[0]).cols), experts = static_cast<std::size_t>(a.n_expert);
    const std::size_t ff = gate.size() / experts / k;
    matrix out = n.inputs[5].valid() ? in(n, 5) : matrix(x.size(), 0.0);
    for (std::size_t r = 0; r < x.size() / k; ++r) {
      std::vector<std::size_t> order(experts);
      std::iota(order.begin(), order.end(), 0);
      const double* logits = router.data() + r * experts;
      double all = 0, chosen = 0;
      for (std::size_t e = 0; e < experts; ++e) all += std::exp(logits[e]);
      matrix scores, ranks;
      for (std::size_t e = 0; e < experts; ++e) {
        scores.push_back(a.scores == graph::router_scores::softmax ? std::exp(logits[e]) / all
                                                                   : 1 / (1 + std::exp(-logits[e])));
        ranks.push_back(scores[e] + bias(input::selection_bias, e));
      }
      std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return ranks[i] > ranks[j]; });
      for (std::int64_t u = 0; u < a.n_used; ++u) chosen += scores[order[static_cast<std::size_t>(u)]];
      const matrix row(x.begin() + static_cast<std::ptrdiff_t>(r * k),
                       x.begin() + static_cast<std::ptrdiff_t>((r + 1) * k));
      for (std::int64_t u = 0; u < a.n_used; ++u) {
        const std::size_t e = order[static_cast<std::size_t>(u)];
        matrix h = product(row, {gate.data() + e * ff * k, ff * k}, ff, k);
        const matrix hu = product(row, {up.data() + e * ff * k, ff * k}, ff, k);
        for (std::size_t i = 0; i < ff; ++i)
          h[i] = gated(a.act, h[i] + bias(input::gate_bias, e * ff + i), hu[i] + bias(input::up_bias, e * ff + i));
        note(n.inputs[input::gate], e, row);
        if (g_.weight_of(n.inputs[input::up])->name != g_.weight_of(n.inputs[input::gate])->name)
          note(n.inputs[input::up], e, row);
        note(n.inputs[input::down], e, h);
        const matrix y = product(h, {down.data() + e * ff * k, ff * k}, k, ff);
        const double weight = scores[e] / (a.renormalize ? chosen : 1) * static_cast<double>(a.scale) *
                              (n.inputs[input::expert_scale].valid() ? in(n, input::expert_scale)[e] : 1);
        for (std::size_t i = 0; i < k; ++i) out[r * k + i] += weight * (y[i] + bias(input::down_bias, e * k + i));
      }
    }
    values_[n.outputs[0].index] = out;
  }

  void evaluate(const graph::node& n) {
    if (graph::is_source(n.kind)) return;
    matrix& y = values_[n.outputs[0].index];
    const auto cols = static_cast<std::size_t>(g_.at(n.outputs[0]).cols);
    switch (n.kind) {
      case graph::op::embed:
        for (std::size_t t = 0; t < ids_.size(); ++t)
          y.insert(y.end(), in(n, 0).begin() + static_cast<std::ptrdiff_t>(row_of(n, t) * cols),
                   in(n, 0).begin() + static_cast<std::ptrdiff_t>((row_of(n, t) + 1) * cols));
        break;
      case graph::op::rms_norm: {
        const auto& a = n.as<graph::norm_attributes>();
        y = rms_norm(in(n, 0), given(n, 1), a.group == 0 ? cols : static_cast<std::size_t>(a.group),
                     static_cast<double>(a.eps));
        break;
      }
      case graph::op::layer_norm:
        y = layer_norm(in(n, 0), in(n, 1), n.inputs[2].valid() ? &in(n, 2) : nullptr,
                       static_cast<double>(n.as<graph::norm_attributes>().eps));
        break;
      case graph::op::linear:
        linear(n);
        break;
      case graph::op::rope:
        y = rope(in(n, 0), n.as<graph::rope_attributes>(), given(n, 1), given(n, 2), cols);
        break;
      case graph::op::attention:
        attention(n);
        break;
      case graph::op::delta_net:
        delta_net(n);
        break;
      case graph::op::glu:
        y = in(n, 1);
        for (std::size_t i = 0; i < y.size(); ++i) {
          const std::size_t gates = in(n, 0).size();  // as many, or one per row
          y[i] = gated(n.as<graph::glu_attributes>().act, in(n, 0)[i * gates / y.size()], y[i]);
        }
        break;
      case graph::op::activate:
        y = in(n, 0);
        for (double& e : y) e = act(n.as<graph::activate_attributes>().act, e);
        break;
      case graph::op::add:
        y = in(n, 0);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += in(n, 1)[i];
        break;
      case graph::op::scale:
        y = in(n, 0);
        for (double& e : y)
          e *= static_cast<double>(n.as<graph::scale_attributes>().factor) * (n.inputs[1].valid() ? in(n, 1)[0] : 1);
        break;
      case graph::op::softcap:
        y = in(n, 0);
        for (double& e : y) {
          const auto cap = static_cast<double>(n.as<graph::softcap_attributes>().cap);
          e = cap * std::tanh(e / cap);
        }
        break;
      case graph::op::columns: {
        const auto& a = n.as<graph::columns_attributes>();
        const auto step = static_cast<std::size_t>(a.step == 0 ? g_.at(n.inputs[0]).cols : a.step);
        const auto first = static_cast<std::ptrdiff_t>(a.first), count = static_cast<std::ptrdiff_t>(a.count);
        for (std::size_t at = 0; at < in(n, 0).size(); at += step) {
          const auto from = in(n, 0).begin() + static_cast<std::ptrdiff_t>(at) + first;
          y.insert(y.end(), from, from + count);
        }
        break;
      }
      case graph::op::select_outputs:
        for (std::int32_t r : output_rows_)
          y.insert(y.end(), in(n, 0).begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r) * cols),
                   in(n, 0).begin() + static_cast<std::ptrdiff_t>((static_cast<std::size_t>(r) + 1) * cols));
        break;
      case graph::op::moe_ffn:
        moe(n);
        break;
      case graph::op::tap:
        y = in(n, 0);
        break;
      default:
        throw std::logic_error("reference_graph: operation without a meaning here");
    }
  }

  const graph::graph& g_;
  std::vector<matrix> weights_;
  std::vector<matrix> values_;
  std::map<std::int64_t, std::pair<matrix, matrix>> stored_;  ///< Keys and values of each layer.
  std::span<const std::int32_t> ids_, output_rows_, token_types_;
};

}  // namespace flywheel::test
