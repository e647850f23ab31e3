// Small random models of the architectures for which there are reference passes, with the keys and tensor names of the
// common GGUF converter. Weights are scaled so that every feature shows in the results, which a test checks.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/tiny_model.hpp"

namespace flywheel::test::reference {

struct random_model {
  std::string name;
  io::metadata meta;
  std::vector<tiny_tensor> tensors;
  [[nodiscard]] std::string architecture() const { return std::string(meta.string("general.architecture").value()); }
  void write(const std::filesystem::path& path) const { write_tensors(path, meta, tensors); }
};

/// Adds keys (the architecture's name is put in front) and random tensors to a model.
class model_maker {
 public:
  model_maker(std::string name, const tiny_model& m) : random_(m.seed) {
    model_.name = std::move(name);
    model_.meta = tiny_metadata(m);
    model_.meta.set("general.name", model_.name);
  }
  void key(std::string_view name, io::value v) {
    model_.meta.set(model_.architecture() + "." + std::string(name), std::move(v));
  }
  void count(std::string_view name, std::uint32_t n) { key(name, n); }
  void erase(std::string_view name) { model_.meta.erase(model_.architecture() + "." + std::string(name)); }
  io::metadata& meta() { return model_.meta; }

  /// Rows of about `gain` times the length that keeps the size of what they multiply.
  void matrix(const std::string& name, shape dims, float gain = 1) {
    normal(name, dims, 0, gain / std::sqrt(static_cast<float>(dims.cols())));
  }
  void norm(const std::string& name, std::int64_t n) { normal(name, {n}, 1, 0.3F); }
  void normal(const std::string& name, shape dims, float mean, float deviation) {
    tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
    t.values.resize(static_cast<std::size_t>(dims.elements()));
    for (float& v : t.values) v = mean + deviation * random_.normal();
    model_.tensors.push_back(std::move(t));
  }
  void values(const std::string& name, std::vector<float> v) {
    const auto n = static_cast<std::int64_t>(v.size());
    model_.tensors.push_back({{name, dtype::f32, {n}, 0}, std::move(v)});
  }
  /// The block's q, k, v and output matrices. Queries and keys are large enough that attention chooses.
  void attention(const std::string& block, std::int64_t n_embd, std::int64_t q_rows, std::int64_t kv_rows,
                 std::int64_t out_cols) {
    matrix(block + "attn_q.weight", {q_rows, n_embd}, 2);
    matrix(block + "attn_k.weight", {kv_rows, n_embd}, 2);
    matrix(block + "attn_v.weight", {kv_rows, n_embd});
    matrix(block + "attn_output.weight", {n_embd, out_cols});
  }
  void feed_forward(const std::string& block, const std::string& suffix, std::int64_t n_embd, std::int64_t n_ff) {
    matrix(block + "ffn_gate" + suffix + ".weight", {n_ff, n_embd}, 2);
    matrix(block + "ffn_up" + suffix + ".weight", {n_ff, n_embd}, 2);
    matrix(block + "ffn_down" + suffix + ".weight", {n_embd, n_ff}, 2);
  }
  /// Experts and a router that chooses clearly.
  void experts(const std::string& block, std::int64_t n_embd, std::int64_t n_ff, std::int64_t count) {
    matrix(block + "ffn_gate_inp.weight", {count, n_embd}, 2);
    matrix(block + "ffn_gate_exps.weight", {count, n_ff, n_embd}, 2);
    matrix(block + "ffn_up_exps.weight", {count, n_ff, n_embd}, 2);
    matrix(block + "ffn_down_exps.weight", {count, n_embd, n_ff}, 2);
  }
  random_model finish() { return std::move(model_); }

 private:
  random_model model_;
  tiny_random random_;
};

inline tiny_model small(std::string architecture, std::int32_t layers, std::uint64_t seed) {
  tiny_model m;
  m.architecture = std::move(architecture);
  m.hidden = 64;
  m.layers = layers;
  m.heads = 4;
  m.kv_heads = 2;
  m.ffn = 96;
  m.context = 512;
  m.seed = seed;
  return m;
}

/// Embedding, llama layers and, when not tied, an output matrix; heads of `head_dim` columns.
inline void llama_tensors(model_maker& make, const tiny_model& m, std::int64_t head_dim, bool qk_norm = false) {
  make.matrix("token_embd.weight", {m.vocab, m.hidden}, 4);
  for (std::int32_t layer = 0; layer < m.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    make.norm(block + "attn_norm.weight", m.hidden);
    make.attention(block, m.hidden, m.heads * head_dim, m.kv_heads * head_dim, m.heads * head_dim);
    if (qk_norm) {
      make.norm(block + "attn_q_norm.weight", head_dim);
      make.norm(block + "attn_k_norm.weight", head_dim);
    }
    make.norm(block + "ffn_norm.weight", m.hidden);
    if (m.experts > 0)
      make.experts(block, m.hidden, m.ffn, m.experts);
    else
      make.feed_forward(block, "", m.hidden, m.ffn);
  }
  make.norm("output_norm.weight", m.hidden);
  if (!m.tied) make.matrix("output.weight", {m.vocab, m.hidden});
}

inline random_model random_smollm3() {
  const tiny_model m = small("smollm3", 5, 3);
  model_maker make("smollm3", m);
  make.key("rope.freq_base", 2000000.0F);
  llama_tensors(make, m, 16);
  return make.finish();
}

inline random_model random_granite() {
  tiny_model m = small("granite", 3, 4);
  m.tied = false;
  model_maker make("granite", m);
  make.key("embedding_scale", 3.0F);
  make.key("residual_scale", 0.4F);
  make.key("attention.scale", 0.11F);
  make.key("logit_scale", 5.0F);
  llama_tensors(make, m, 16);
  return make.finish();
}

inline random_model random_mistral3(bool experts) {
  tiny_model m = small("mistral3", 3, experts ? 6 : 5);
  m.tied = false;
  if (experts) m.experts = 6, m.experts_used = 2, m.ffn = 32;
  model_maker make(experts ? "mistral3_moe" : "mistral3", m);
  // Not hidden / heads, as in the published models.
  for (const char* name : {"attention.key_length", "attention.value_length", "rope.dimension_count"})
    make.count(name, 32);
  make.key("rope.freq_base", 1000.0F);
  if (!experts) {  // Ministral 3; Mistral Small 3 has neither
    make.key("rope.scaling.type", std::string("yarn"));
    make.key("rope.scaling.factor", 4.0F);
    make.count("rope.scaling.original_context_length", 64);
    make.key("rope.scaling.yarn_beta_fast", 4.0F);
    make.key("rope.scaling.yarn_beta_slow", 0.5F);
    make.key("rope.scaling.yarn_log_multiplier", 1.0F);
    make.key("attention.temperature_scale", 0.3F);
  }
  llama_tensors(make, m, 32);
  return make.finish();
}

/// Qwen3-Embedding: pooling of the last token.
inline random_model random_qwen3() {
  const tiny_model m = small("qwen3", 3, 7);
  model_maker make("qwen3_embedding", m);
  for (const char* name : {"attention.key_length", "attention.value_length", "rope.dimension_count"})
    make.count(name, 32);
  make.count("pooling_type", 3);
  llama_tensors(make, m, 32, true);
  return make.finish();
}

/// `small_device`: per-layer embeddings, a tail that shares keys and values, and a wider feed-forward in that tail
/// (E2B, E4B). Otherwise: experts beside the dense feed-forward, values from the keys in layers with the whole context,
/// which have fewer kv heads (26B-A4B; 31B without the experts).
inline random_model random_gemma4(bool small_device) {
  const std::vector<bool> local = small_device ? std::vector<bool>{true, false, true, false, true, true, false}
                                               : std::vector<bool>{true, true, false, true, false};
  const std::size_t n_shared = small_device ? 3 : 0;
  tiny_model m = small("gemma4", static_cast<std::int32_t>(local.size()), small_device ? 8 : 9);
  const std::int64_t head_local = 32, head_full = 64, per_layer = 16, n_experts = 6, n_ff_exp = 32;
  model_maker make(small_device ? "gemma4_small_device" : "gemma4_moe", m);
  make.key("attention.layer_norm_rms_epsilon", 1e-6F);
  make.count("attention.key_length", 64);
  make.count("attention.value_length", 64);
  make.count("attention.key_length_swa", 32);
  make.count("attention.value_length_swa", 32);
  make.count("rope.dimension_count", 64);
  make.count("rope.dimension_count_swa", 32);
  make.key("rope.freq_base", 1000.0F);
  make.key("rope.freq_base_swa", 100.0F);
  make.count("attention.sliding_window", 12);
  make.key("attention.sliding_window_pattern", local);
  make.count("attention.shared_kv_layers", static_cast<std::uint32_t>(n_shared));
  make.count("embedding_length_per_layer_input", small_device ? 16 : 0);
  make.key("final_logit_softcapping", 3.0F);
  std::vector<std::int32_t> kv_heads, n_ff;
  for (std::size_t i = 0; i < local.size(); ++i) {
    kv_heads.push_back(local[i] || small_device ? 2 : 1);
    n_ff.push_back(small_device && i >= local.size() - n_shared ? 2 * m.ffn : m.ffn);
  }
  if (small_device) {
    make.key("feed_forward_length", n_ff);
  } else {
    make.key("attention.head_count_kv", kv_heads);
    make.count("expert_count", 6);
    make.count("expert_used_count", 2);
    make.count("expert_feed_forward_length", 32);
  }

  make.matrix("token_embd.weight", {m.vocab, m.hidden}, 2);
  if (small_device) {
    make.matrix("per_layer_token_embd.weight", {m.vocab, per_layer * m.layers}, 6);
    make.matrix("per_layer_model_proj.weight", {per_layer * m.layers, m.hidden}, 4);
    make.norm("per_layer_proj_norm.weight", per_layer);
  }
  std::vector<float> divisors(static_cast<std::size_t>(head_full / 2), 1e30F);  // the others do not turn
  for (std::size_t i = 0; i < divisors.size() / 4; ++i) divisors[i] = 1;
  make.values("rope_freqs.weight", divisors);
  for (std::size_t i = 0; i < local.size(); ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    const std::int64_t head = local[i] ? head_local : head_full;
    make.norm(block + "attn_norm.weight", m.hidden);
    make.matrix(block + "attn_q.weight", {m.heads * head, m.hidden});
    // Files hold keys and values of the sharing layers too; nobody reads them.
    make.matrix(block + "attn_k.weight", {kv_heads[i] * head, m.hidden});
    if (local[i] || small_device) make.matrix(block + "attn_v.weight", {kv_heads[i] * head, m.hidden});
    make.matrix(block + "attn_output.weight", {m.hidden, m.heads * head});
    // Scores have no other scale, so these norms are smaller than 1.
    make.normal(block + "attn_q_norm.weight", {head}, 0.5F, 0.15F);
    make.normal(block + "attn_k_norm.weight", {head}, 0.5F, 0.15F);
    make.norm(block + "post_attention_norm.weight", m.hidden);
    make.norm(block + "ffn_norm.weight", m.hidden);
    make.feed_forward(block, "", m.hidden, n_ff[i]);
    make.norm(block + "post_ffw_norm.weight", m.hidden);
    if (!small_device) {
      make.norm(block + "post_ffw_norm_1.weight", m.hidden);
      make.norm(block + "pre_ffw_norm_2.weight", m.hidden);
      make.norm(block + "post_ffw_norm_2.weight", m.hidden);
      make.matrix(block + "ffn_gate_inp.weight", {n_experts, m.hidden}, 8);
      make.normal(block + "ffn_gate_inp.scale", {m.hidden}, 2, 0.5F);
      make.matrix(block + "ffn_gate_up_exps.weight", {n_experts, 2 * n_ff_exp, m.hidden}, 2);
      make.matrix(block + "ffn_down_exps.weight", {n_experts, m.hidden, n_ff_exp}, 2);
      make.normal(block + "ffn_down_exps.scale", {n_experts}, 1, 0.3F);
    } else {
      make.matrix(block + "inp_gate.weight", {per_layer, m.hidden}, 2);
      make.matrix(block + "proj.weight", {m.hidden, per_layer});
      make.norm(block + "post_norm.weight", m.hidden);
    }
    make.values(block + "layer_output_scale.weight", {0.6F + 0.1F * static_cast<float>(i)});
  }
  make.norm("output_norm.weight", m.hidden);
  return make.finish();
}

/// `nextn`: with a block that predicts further tokens behind the layers, as converters write it. Nobody reads it, so
/// the results are those of the model without.
inline random_model random_qwen35moe(bool nextn) {
  tiny_model m = small("qwen35moe", 5, 11);
  m.tied = false;
  m.experts = 6;
  m.experts_used = 2;
  model_maker make(nextn ? "qwen35moe_nextn" : "qwen35moe", m);
  const std::int64_t head = 32, state = 32, key_heads = 2, value_heads = 4, n_ff_exp = 32, n_ff_shared = 48;
  const std::int64_t keys = key_heads * state, values = value_heads * state;
  make.key("attention.layer_norm_rms_epsilon", 1e-6F);
  make.count("attention.key_length", 32);
  make.count("attention.value_length", 32);
  make.erase("feed_forward_length");
  make.count("expert_feed_forward_length", 32);
  make.count("expert_shared_feed_forward_length", 48);
  make.count("rope.dimension_count", 16);
  make.key("rope.dimension_sections", std::vector<std::int32_t>{3, 3, 2, 0});
  make.count("ssm.conv_kernel", 4);
  make.count("ssm.state_size", 32);
  make.count("ssm.group_count", 2);
  make.count("ssm.time_step_rank", 4);
  make.count("ssm.inner_size", 128);
  make.count("full_attention_interval", 3);
  if (nextn) {
    make.count("block_count", 6);
    make.count("nextn_predict_layers", 1);
    make.key("attention.recurrent_layers", std::vector<bool>{true, true, false, true, true, false});
  }

  make.matrix("token_embd.weight", {m.vocab, m.hidden}, 4);
  const auto attention = [&](const std::string& block) {
    make.attention(block, m.hidden, 2 * m.heads * head, m.kv_heads * head, m.heads * head);
    make.norm(block + "attn_q_norm.weight", head);
    make.norm(block + "attn_k_norm.weight", head);
  };
  const auto feed_forward = [&](const std::string& block) {
    make.norm(block + "post_attention_norm.weight", m.hidden);
    make.experts(block, m.hidden, n_ff_exp, m.experts);
    make.matrix(block + "ffn_gate_inp_shexp.weight", {m.hidden}, 2);
    make.feed_forward(block, "_shexp", m.hidden, n_ff_shared);
  };
  for (std::int32_t layer = 0; layer < m.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    make.norm(block + "attn_norm.weight", m.hidden);
    if ((layer + 1) % 3 == 0) {
      attention(block);
    } else {
      make.matrix(block + "attn_qkv.weight", {2 * keys + values, m.hidden}, 2);
      make.matrix(block + "attn_gate.weight", {values, m.hidden}, 2);
      make.matrix(block + "ssm_conv1d.weight", {2 * keys + values, 4}, 2);
      make.normal(block + "ssm_dt.bias", {value_heads}, -1, 0.5F);
      std::vector<float> decay;
      for (int h = 0; h < value_heads; ++h) decay.push_back(-0.05F * static_cast<float>(1 + 3 * h));
      make.values(block + "ssm_a", decay);
      make.matrix(block + "ssm_beta.weight", {value_heads, m.hidden}, 2);
      make.matrix(block + "ssm_alpha.weight", {value_heads, m.hidden}, 2);
      make.norm(block + "ssm_norm.weight", state);
      make.matrix(block + "ssm_out.weight", {m.hidden, values}, 2);
    }
    feed_forward(block);
  }
  make.norm("output_norm.weight", m.hidden);
  make.matrix("output.weight", {m.vocab, m.hidden});
  if (nextn) {
    const std::string block = "blk." + std::to_string(m.layers) + ".";
    make.norm(block + "attn_norm.weight", m.hidden);
    attention(block);
    feed_forward(block);
    make.matrix(block + "nextn.eh_proj.weight", {m.hidden, 2 * m.hidden});
    for (const char* name : {"enorm", "hnorm", "shared_head_norm"})
      make.norm(block + "nextn." + name + ".weight", m.hidden);
  }
  return make.finish();
}

/// WordPiece with the mark that the converter puts before pieces that start a word.
inline void wordpiece_vocabulary(io::metadata& meta, std::int32_t count) {
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
  std::vector<std::int32_t> kinds = {3, 2, 3, 3, 3};
  for (const char* start : {"\xE2\x96\x81", ""})
    for (char c = 'a'; c <= 'z'; ++c) pieces.push_back(start + std::string(1, c));
  for (std::int32_t extra = 0; static_cast<std::int32_t>(pieces.size()) < count; ++extra)
    pieces.push_back("\xE2\x96\x81[unused" + std::to_string(extra) + "]");
  kinds.resize(pieces.size(), 1);
  for (const char* key : {"scores", "add_space_prefix"}) meta.erase("tokenizer.ggml." + std::string(key));
  meta.set("tokenizer.ggml.model", std::string("bert"));
  meta.set("tokenizer.ggml.pre", std::string("jina-v2-en"));
  meta.set("tokenizer.ggml.token_type_count", std::uint32_t{2});
  meta.set("tokenizer.ggml.tokens", std::move(pieces));
  meta.set("tokenizer.ggml.token_type", std::move(kinds));
  const std::pair<const char*, std::uint32_t> special[] = {
      {"bos", 2},     {"eos", 3}, {"unknown", 1}, {"seperator", 3},
      {"padding", 0}, {"cls", 2}, {"mask", 4}};  // the common converter's spelling
  for (const auto& [name, id] : special) meta.set("tokenizer.ggml." + std::string(name) + "_token_id", id);
  meta.set("tokenizer.ggml.add_bos_token", true);
  meta.set("tokenizer.ggml.add_eos_token", true);
}

inline random_model random_nomic_bert() {
  const tiny_model m = small("nomic-bert", 3, 10);
  model_maker make("nomic-bert", m);
  for (const char* name : {"attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.dimension_count"})
    make.erase(name);
  make.key("attention.layer_norm_epsilon", 1e-12F);
  make.key("attention.causal", false);
  make.count("pooling_type", 1);
  make.key("rope.freq_base", 1000.0F);
  wordpiece_vocabulary(make.meta(), m.vocab);
  const auto norm = [&](const std::string& name) {
    make.norm(name + ".weight", m.hidden);
    make.normal(name + ".bias", {m.hidden}, 0, 0.3F);
  };
  make.matrix("token_embd.weight", {m.vocab, m.hidden}, 4);
  make.matrix("token_types.weight", {2, m.hidden}, 4);
  norm("token_embd_norm");
  for (std::int32_t layer = 0; layer < m.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    make.matrix(block + "attn_qkv.weight", {3 * m.hidden, m.hidden}, 1.5F);
    make.matrix(block + "attn_output.weight", {m.hidden, m.hidden});
    norm(block + "attn_output_norm");
    make.feed_forward(block, "", m.hidden, m.ffn);
    norm(block + "layer_output_norm");
  }
  return make.finish();
}

inline std::vector<random_model> random_models() {
  std::vector<random_model> models;
  models.push_back(random_smollm3());
  models.push_back(random_granite());
  models.push_back(random_mistral3(false));
  models.push_back(random_mistral3(true));
  models.push_back(random_qwen3());
  models.push_back(random_gemma4(true));
  models.push_back(random_gemma4(false));
  models.push_back(random_qwen35moe(false));
  models.push_back(random_qwen35moe(true));
  models.push_back(random_nomic_bert());
  return models;
}

}  // namespace flywheel::test::reference
