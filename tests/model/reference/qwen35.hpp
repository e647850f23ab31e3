// Qwen3.5, dense and with experts: gated delta-net layers (Yang et al. 2024, "Gated Delta Networks"), and every few
// layers attention whose output is gated.
#pragma once

#include "model/reference/blocks.hpp"

namespace flywheel::test::reference {

/// For each column, sum_j kernel[column][j] x[t - (taps - 1) + j], then SiLU. Before the first token there are zeros.
inline rows causal_convolution(const rows& x, const tensor& kernel) {
  const std::size_t taps = kernel.cols;
  rows y(x.size(), vec(x.front().size(), 0.0));
  for (std::size_t t = 0; t < x.size(); ++t)
    for (std::size_t c = 0; c < y[t].size(); ++c)
      for (std::size_t j = 0; j < taps; ++j)
        if (t + j + 1 >= taps) y[t][c] += kernel.values[c * taps + j] * x[t + j + 1 - taps][c];
  return each(y, silu);
}

/// x / sqrt(sum(x^2) + eps), over groups of columns.
inline rows l2_norm(const rows& x, double eps, std::size_t group) {
  const double n = static_cast<double>(group);
  return scaled(rms_norm(x, {}, eps / n, group), 1 / std::sqrt(n));
}

/// The recurrence of one value head. q, k, v [tokens][dim], decay (in (0, 1)) and rate per token:
///   S <- decay S;  S <- S + k (rate (v - S^T k))^T;  o = S^T q / sqrt(dim).
inline rows delta_rule(const rows& q, const rows& k, const rows& v, const vec& decay, const vec& rate) {
  const std::size_t key_dim = k.front().size(), value_dim = v.front().size();
  rows state(key_dim, vec(value_dim, 0.0));  // S
  const auto read = [&](const vec& key) {    // S^T key
    vec out(value_dim, 0.0);
    for (std::size_t i = 0; i < key_dim; ++i)
      for (std::size_t j = 0; j < value_dim; ++j) out[j] += state[i][j] * key[i];
    return out;
  };
  rows out;
  for (std::size_t t = 0; t < v.size(); ++t) {
    for (vec& row : state)
      for (double& value : row) value *= decay[t];
    const vec known = read(k[t]);
    for (std::size_t i = 0; i < key_dim; ++i)
      for (std::size_t j = 0; j < value_dim; ++j) state[i][j] += k[t][i] * rate[t] * (v[t][j] - known[j]);
    out.push_back(read(q[t]));
  }
  return scaled(out, 1 / std::sqrt(static_cast<double>(key_dim)));
}

inline rows delta_net(const model_file& m, const std::string& block, const rows& x) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  const std::size_t dim = m.count("ssm.state_size"), key_heads = m.count("ssm.group_count");
  const std::size_t value_heads = m.count("ssm.time_step_rank");
  const rows mixed =
      causal_convolution(linear(m.get(block + "attn_qkv.weight"), x), m.get(block + "ssm_conv1d.weight"));
  const rows q = l2_norm(columns(mixed, 0, key_heads * dim), eps, dim);
  const rows k = l2_norm(columns(mixed, key_heads * dim, key_heads * dim), eps, dim);
  const rows v = columns(mixed, 2 * key_heads * dim, value_heads * dim);
  const rows step = each(linear(m.get(block + "ssm_alpha.weight"), x, m.values(block + "ssm_dt.bias")), softplus);
  const rows rate = each(linear(m.get(block + "ssm_beta.weight"), x), sigmoid);

  rows out(x.size());
  for (std::size_t h = 0; h < value_heads; ++h) {
    const std::size_t key_head = h % key_heads;  // files hold the value heads in this order
    vec decay, head_rate;
    for (std::size_t t = 0; t < x.size(); ++t) {
      decay.push_back(std::exp(step[t][h] * m.values(block + "ssm_a").at(h)));
      head_rate.push_back(rate[t][h]);
    }
    const rows o = delta_rule(columns(q, key_head * dim, dim), columns(k, key_head * dim, dim),
                              columns(v, h * dim, dim), decay, head_rate);
    for (std::size_t t = 0; t < x.size(); ++t) out[t].insert(out[t].end(), o[t].begin(), o[t].end());
  }
  const rows gate = each(linear(m.get(block + "attn_gate.weight"), x), silu);
  const rows normed = rms_norm(out, m.values(block + "ssm_norm.weight"), eps, dim);
  return linear(m.get(block + "ssm_out.weight"), multiply(normed, gate));
}

/// Attention; attn_q holds, per head, the query and then a gate, whose sigmoid multiplies what the head attended to.
inline rows gated_attention(const model_file& m, const std::string& block, const rows& x) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  attention_shape shape;
  shape.heads = m.count("attention.head_count");
  shape.kv_heads = m.count("attention.head_count_kv");
  shape.head_dim = m.count("attention.key_length");
  const std::size_t dim = shape.head_dim;
  const rows both = linear(m.get(block + "attn_q.weight"), x);
  rows q(x.size()), gate(x.size());
  for (std::size_t h = 0; h < shape.heads; ++h)
    for (std::size_t t = 0; t < x.size(); ++t) {
      const auto begin = both[t].begin() + static_cast<std::ptrdiff_t>(2 * h * dim);
      const auto middle = begin + static_cast<std::ptrdiff_t>(dim);
      q[t].insert(q[t].end(), begin, middle);
      gate[t].insert(gate[t].end(), middle, middle + static_cast<std::ptrdiff_t>(dim));
    }
  // The position of text is the same in all sections of the rotation, so it is the plain one.
  const rotary rope = rotary_of(m, pairs::halves, dim);
  q = rotate(rms_norm(q, m.values(block + "attn_q_norm.weight"), eps, dim), rope, dim);
  const rows k = rotate(
      rms_norm(linear(m.get(block + "attn_k.weight"), x), m.values(block + "attn_k_norm.weight"), eps, dim), rope, dim);
  const rows attended = attention(q, k, linear(m.get(block + "attn_v.weight"), x), shape);
  return linear(m.get(block + "attn_output.weight"), multiply(attended, each(gate, sigmoid)));
}

inline prediction qwen35(const model_file& m, std::span<const std::int32_t> ids) {
  const double eps = m.number("attention.layer_norm_rms_epsilon");
  prediction p;
  rows x = embedding(m.get("token_embd.weight"), ids);
  const std::size_t n_layers = m.count("block_count") - m.count("nextn_predict_layers", 0);  // those predict no logits
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    const std::string block = block_name(layer);
    const rows h = rms_norm(x, m.values(block + "attn_norm.weight"), eps);
    const bool full = (layer + 1) % m.count("full_attention_interval") == 0;
    x = add(x, full ? gated_attention(m, block, h) : delta_net(m, block, h));

    const rows g = rms_norm(x, m.values(block + "post_attention_norm.weight"), eps);
    if (m.has(block + "ffn_gate_inp.weight")) {
      x = add(x, mixture(m, block, linear(m.get(block + "ffn_gate_inp.weight"), g), g, silu, p.router_gap));
      rows shared = gated(m, block, "_shexp", g, silu);
      for (std::size_t t = 0; t < x.size(); ++t) {
        const double gate = sigmoid(times(m.get(block + "ffn_gate_inp_shexp.weight"), g[t]).at(0));
        for (std::size_t i = 0; i < x[t].size(); ++i) x[t][i] += gate * shared[t][i];
      }
    } else {
      x = add(x, gated(m, block, "", g, silu));
    }
  }
  finish(m, x, p);
  return p;
}

}  // namespace flywheel::test::reference
