// gemma4 (Google 2026): a pattern of layers that see a sliding window and layers that see everything, each kind with
// its own size of heads and rotation; values are normed too, without weights, and are the keys where a layer has no
// attn_v; the last layers attend to what the last layer of their kind before them stored; scores are not scaled.
//
// Small models add, after every layer, an embedding of the token that is the layer's own: its row of a second table
// plus a projection of the first embedding. Large ones have experts beside the dense layer.
#include <algorithm>
#include <cmath>

#include "src/model/architectures/decoder.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {
namespace {

/// What differs between layers that see a window and layers that see everything.
struct layer_kind {
  std::int64_t head_dim = 0;
  std::int64_t window = 0;
  graph::rope_attributes rope;
  std::int64_t last_stored = -1;  ///< The last layer so far that has keys and values of its own.
};

class gemma4 : public decoder {
 public:
  using decoder::decoder;

  /// [tokens, n_layers * width]: the layers' own embeddings.
  graph::value layer_embeddings(std::int64_t width) {
    const std::int64_t all = h.n_layers * width;
    const graph::value rows = b.scale(b.embed(b.weight("per_layer_token_embd.weight", {h.n_vocab, all}), b.token_ids()),
                                      std::sqrt(static_cast<float>(width)));
    graph::value projected =
        b.scale(b.matmul(x, b.weight("per_layer_model_proj.weight", {all, h.n_embd})), inverse_root());
    projected = b.rms_norm(projected, b.weight("per_layer_proj_norm.weight", {width}), h.norm_eps, width);
    return b.scale(b.add(projected, rows), std::sqrt(0.5F));
  }

  void attend(std::int64_t layer, layer_kind& kind, bool stores) {
    graph::attention_attributes scores;
    scores.n_heads = h.of(layer).n_heads;
    scores.n_kv_heads = h.of(layer).n_kv_heads;
    scores.head_dim = kind.head_dim;
    scores.window = kind.window;
    const std::int64_t q_width = scores.n_heads * kind.head_dim, kv_width = scores.n_kv_heads * kind.head_dim;
    const graph::value factors =
        kind.window == 0 ? b.optional_weight("rope_freqs.weight", {kind.rope.n_rot / 2}) : graph::value{};
    const auto head_norm = [&](graph::value heads, const char* weight_name) {
      const graph::value w = weight_name ? weight(layer, weight_name, {kind.head_dim}) : graph::value{};
      return b.rms_norm(heads, w, h.norm_eps, kind.head_dim);
    };

    const graph::value in = norm(layer, "attn_norm", x);
    const graph::value q =
        b.rope(head_norm(product(layer, "attn_q", in, q_width, h.n_embd), "attn_q_norm.weight"), kind.rope, factors);
    graph::value k, v;
    if (stores) {
      const graph::value keys = product(layer, "attn_k", in, kv_width, h.n_embd);
      const bool own_values = file.find("blk." + std::to_string(layer) + ".attn_v.weight");
      v = head_norm(own_values ? product(layer, "attn_v", in, kv_width, h.n_embd) : keys, nullptr);
      k = b.rope(head_norm(keys, "attn_k_norm.weight"), kind.rope, factors);
      kind.last_stored = layer;
    } else if (kind.last_stored < 0) {
      b.fail({errc::malformed, "layer " + std::to_string(layer) + " shares keys that no layer before it stores",
              h.architecture + ".attention.shared_kv_layers"});
    }
    scores.layer = kind.last_stored;
    graph::value attended = b.attention(q, k, v, scores);
    if (layer + 1 == h.n_layers) select_outputs(attended);
    add(layer, product(layer, "attn_output", attended, h.n_embd, q_width), {nullptr, "post_attention_norm", 1});
  }

  void dense_and_experts(std::int64_t layer) {
    graph::value y = gated(layer, norm(layer, "ffn_norm", x), activation::gelu_tanh);
    if (const graph::value router = optional_weight(layer, "ffn_gate_inp.weight", {h.n_expert, h.n_embd});
        router.valid()) {
      y = norm(layer, "post_ffw_norm_1", y);
      const graph::value seen = b.rms_norm(x, weight(layer, "ffn_gate_inp.scale", {h.n_embd}), h.norm_eps);
      const graph::value routed = experts(layer, norm(layer, "pre_ffw_norm_2", x), activation::gelu_tanh,
                                          b.scale(b.matmul(seen, router), inverse_root()));
      y = b.add(y, norm(layer, "post_ffw_norm_2", routed));
    }
    add(layer, y, {nullptr, "post_ffw_norm", 1});
  }

  void add_embedding(std::int64_t layer, graph::value embeddings, std::int64_t width) {
    graph::value own = b.columns(embeddings, layer * width, width);
    if (layer + 1 == h.n_layers) own = b.select_outputs(own);
    const graph::value gate = b.matmul(x, weight(layer, "inp_gate.weight", {width, h.n_embd}));
    add(layer, product(layer, "proj", b.glu(gate, own, activation::gelu_tanh), h.n_embd, width),
        {nullptr, "post_norm", 1});
  }

 private:
  [[nodiscard]] float inverse_root() const { return 1 / std::sqrt(static_cast<float>(h.n_embd)); }
};

}  // namespace

result<graph::graph> build_gemma4(const io::archive& file, const hyperparameters& h, graph_output output) {
  key_reader keys(file.metadata(), h.architecture);
  const std::vector<bool> sliding = keys.booleans("attention.sliding_window_pattern", h.n_layers);
  const std::int64_t first_shared = h.n_layers - keys.integer_or("attention.shared_kv_layers", 0, 0, h.n_layers);
  const std::int64_t width = keys.integer_or("embedding_length_per_layer_input", 0, 0, 65536);
  const float logits_cap = keys.float_or("final_logit_softcapping", 30, 0, 1e6);
  layer_kind global{h.head_dim, 0, h.rope}, local{0, h.window, {}};
  global.rope.pairs = local.rope.pairs = rope_pairs::halves;
  local.head_dim = local.rope.head_dim = keys.integer_or("attention.key_length_swa", h.head_dim, 2, 65536);
  local.rope.n_rot = keys.integer_or("rope.dimension_count_swa", local.head_dim, 2, local.head_dim);
  local.rope.base = keys.number_or("rope.freq_base_swa", 10000, 1.0001, 1e12);
  if (keys.integer_or("attention.value_length_swa", local.head_dim, 1, 65536) != local.head_dim)
    keys.refuse("attention.value_length_swa", errc::unsupported, "unsupported: keys and values of different lengths");
  if (h.window == 0 && std::find(sliding.begin(), sliding.end(), true) != sliding.end())
    keys.refuse("attention.sliding_window", errc::malformed, "the layers' pattern names windows, but none is given");
  if (keys.failure) return *keys.failure;

  gemma4 d(file, h, output);
  d.embed(std::sqrt(static_cast<float>(h.n_embd)));
  const graph::value embeddings = width > 0 ? d.layer_embeddings(width) : graph::value{};
  for (std::int64_t layer = 0; layer < h.n_layers; ++layer) {
    d.attend(layer, sliding[static_cast<std::size_t>(layer)] ? local : global, layer < first_shared);
    d.dense_and_experts(layer);
    if (width > 0) d.add_embedding(layer, embeddings, width);
    const graph::value scale = d.optional_weight(layer, "layer_output_scale.weight", {1});
    if (scale.valid()) d.x = d.b.scale(d.x, 1, scale);
  }
  return d.finish({1, logits_cap});
}

}  // namespace flywheel::inline v0::detail
