// bert: BERT and its kin that embed texts (Devlin et al. 2019): BGE, E5, GTE, MiniLM, RoBERTa. nomic-bert: the same
// with rotated queries and keys instead of learned positions, and a gated feed-forward layer (Nussbaum et al. 2024).
// Every token sees the whole text; norms stand behind the residual additions. A reranker ends with a classifier over
// the first token's row.
#include <cmath>

#include "src/model/architecture.hpp"

namespace flywheel::inline v0::detail {
namespace {

/// Rows of a table; files drop a first dimension of 1.
std::int64_t rows_of(const io::tensor_info& table) { return table.dims.rank() == 1 ? 1 : table.dims[0]; }

struct encoder_kind {
  bool learned_positions = true;  ///< Otherwise rotary ones.
  bool gated = false;             ///< act(gate) * up, otherwise act(up).
  activation act = activation::gelu_tanh;
};

result<graph::graph> build_encoder(const io::archive& file, const hyperparameters& h, graph_output output,
                                   const encoder_kind& kind) {
  graph::builder b(file);
  const std::int64_t d = h.n_embd, width = h.n_heads * h.head_dim, kv_width = h.n_kv_heads * h.head_dim;
  const auto product = [&](graph::value x, const std::string& name, std::int64_t rows, std::int64_t cols) {
    return b.matmul(x, b.weight(name + ".weight", {rows, cols}), b.optional_weight(name + ".bias", {rows}));
  };
  const auto norm = [&](graph::value x, const std::string& name) {
    return b.layer_norm(x, b.weight(name + ".weight", {d}), b.optional_weight(name + ".bias", {d}), h.norm_eps);
  };

  // A row of each table: of the token, of its segment, of its position.
  graph::value x = b.embed(b.weight("token_embd.weight", {h.n_vocab, d}), b.token_ids());
  if (const io::tensor_info* types = file.find("token_types.weight"); types && types->dims.rank() > 0)
    x = b.add(x, b.embed(b.weight("token_types.weight", {rows_of(*types), d}), b.token_types()));
  if (kind.learned_positions)
    x = b.add(x, b.embed(b.weight("position_embd.weight", {h.n_ctx_train, d}), b.positions()));
  x = norm(x, "token_embd_norm");

  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    const auto name = [&](const char* part) { return "blk." + std::to_string(layer) + "." + part; };

    // Three tensors, or one of all their rows.
    const std::string fused = name("attn_qkv");
    const bool one = file.find(fused + ".weight"), biased = file.find(fused + ".bias");
    const std::int64_t all_width = width + 2 * kv_width;
    const graph::value all = one && biased ? product(x, fused, all_width, d) : graph::value{};
    const auto part = [&](const char* own, std::int64_t first, std::int64_t rows) {
      if (!one) return product(x, name(own), rows, d);
      if (biased) return b.columns(all, first, rows);
      return b.matmul(x, b.weight_rows(fused + ".weight", {all_width, d}, first, rows));
    };
    graph::value q = part("attn_q", 0, width);
    graph::value k = part("attn_k", width, kv_width);
    const graph::value v = part("attn_v", width + kv_width, kv_width);
    if (!kind.learned_positions) {
      q = b.rope(q, h.rope);
      k = b.rope(k, h.rope);
    }
    graph::attention_attributes attention;
    attention.causal = false;
    attention.n_heads = h.n_heads;
    attention.n_kv_heads = h.n_kv_heads;
    attention.head_dim = h.head_dim;
    attention.scale = 1.0F / std::sqrt(static_cast<float>(h.head_dim));
    graph::value attended = b.attention(q, k, v, attention);
    // Nothing after the last attention mixes tokens: go on with the rows whose results are wanted.
    if (layer + 1 == h.n_layers) {
      attended = b.select_outputs(attended);
      x = b.select_outputs(x);
    }
    x = norm(b.add(x, product(attended, name("attn_output"), d, width)), name("attn_output_norm"));

    const graph::value up = product(x, name("ffn_up"), h.n_ff, d);
    const graph::value f =
        kind.gated ? b.glu(product(x, name("ffn_gate"), h.n_ff, d), up, kind.act) : b.activate(up, kind.act);
    x = norm(b.add(x, product(f, name("ffn_down"), d, h.n_ff)), name("layer_output_norm"));
  }

  if (const io::tensor_info* head = file.find("cls.output.weight");
      head && head->dims.rank() > 0 && output == graph_output::logits) {
    if (file.find("cls.weight")) x = b.softcap(product(x, "cls", d, d), 1);  // a cap of 1 is tanh
    x = product(x, "cls.output", rows_of(*head), d);
  }
  b.output(x);
  return b.finish();
}

}  // namespace

result<graph::graph> build_bert(const io::archive& file, const hyperparameters& h, graph_output output) {
  return build_encoder(file, h, output, {});
}

result<graph::graph> build_nomic_bert(const io::archive& file, const hyperparameters& h, graph_output output) {
  hyperparameters halves = h;
  halves.rope.pairs = rope_pairs::halves;
  return build_encoder(file, halves, output, {false, true, activation::silu});
}

}  // namespace flywheel::inline v0::detail
