// Makes small random encoders for tests: complete `bert` and `nomic-bert` files with a WordPiece vocabulary.
#pragma once

#include "support/tiny_model.hpp"

namespace flywheel::test {

struct tiny_encoder {
  bool nomic = false;  ///< nomic-bert: rotary, fused QKV, gated, without biases; otherwise bert.
  bool fused = false;  ///< bert: Q, K and V in one tensor. nomic-bert always has that.
  std::int32_t hidden = 32;
  std::int32_t layers = 2;
  std::int32_t heads = 4;
  std::int32_t ffn = 48;
  std::int32_t context = 96;
  std::int32_t pooling = 1;  ///< pooling_type; -1: no such key.
  std::int32_t scores = 0;   ///< Of a classification head; 0: none.
  std::uint64_t seed = 1;
};

inline std::vector<std::string> tiny_encoder_pieces() {
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
  for (char c = 'a'; c <= 'z'; ++c) pieces.push_back("\xE2\x96\x81" + std::string(1, c));
  for (char c = 'a'; c <= 'z'; ++c) pieces.emplace_back(1, c);
  return pieces;
}

inline void write_tiny_encoder(const std::filesystem::path& path, const tiny_encoder& m,
                               const std::function<void(io::metadata&, std::vector<tiny_tensor>&)>& edit = {}) {
  const auto u32 = [](std::int32_t v) { return io::value(static_cast<std::uint32_t>(v)); };
  const std::string arch = m.nomic ? "nomic-bert" : "bert", prefix = arch + ".";
  std::vector<std::string> pieces = tiny_encoder_pieces();
  const auto vocab = static_cast<std::int64_t>(pieces.size());
  std::vector<std::int32_t> kinds(pieces.size(), 1);
  for (std::size_t i = 0; i < 5; ++i) kinds[i] = i == 1 ? 2 : 3;
  io::metadata meta;
  meta.set("general.architecture", arch);
  meta.set(prefix + "context_length", u32(m.context));
  meta.set(prefix + "embedding_length", u32(m.hidden));
  meta.set(prefix + "block_count", u32(m.layers));
  meta.set(prefix + "feed_forward_length", u32(m.ffn));
  meta.set(prefix + "attention.head_count", u32(m.heads));
  meta.set(prefix + "attention.layer_norm_epsilon", 1e-12F);
  meta.set(prefix + "attention.causal", false);
  if (m.nomic) meta.set(prefix + "rope.freq_base", 1000.0F);
  if (m.pooling >= 0) meta.set(prefix + "pooling_type", u32(m.pooling));
  meta.set("tokenizer.ggml.model", std::string("bert"));
  meta.set("tokenizer.ggml.tokens", std::move(pieces));
  meta.set("tokenizer.ggml.token_type", std::move(kinds));
  meta.set("tokenizer.ggml.bos_token_id", u32(2));
  meta.set("tokenizer.ggml.eos_token_id", u32(3));
  meta.set("tokenizer.ggml.unknown_token_id", u32(1));
  meta.set("tokenizer.ggml.seperator_token_id", u32(3));
  meta.set("tokenizer.ggml.padding_token_id", u32(0));
  meta.set("tokenizer.ggml.cls_token_id", u32(2));
  meta.set("tokenizer.ggml.add_bos_token", true);
  meta.set("tokenizer.ggml.add_eos_token", true);

  std::vector<tiny_tensor> tensors;
  tiny_random random(m.seed);
  const auto add = [&](const std::string& name, shape dims, float mean, float deviation) {
    tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
    for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(mean + deviation * random.normal());
    tensors.push_back(std::move(t));
  };
  const auto product = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    add(name + ".weight", {rows, cols}, 0, 1.5F / std::sqrt(static_cast<float>(cols)));
    if (!m.nomic) add(name + ".bias", {rows}, 0, 0.2F);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {m.hidden}, 1, 0.2F);
    add(name + ".bias", {m.hidden}, 0, 0.2F);
  };
  const std::int64_t d = m.hidden;
  add("token_embd.weight", {vocab, d}, 0, 1);
  add("token_types.weight", {2, d}, 0, 0.5F);
  if (!m.nomic) add("position_embd.weight", {m.context, d}, 0, 0.5F);
  norm("token_embd_norm");
  for (std::int32_t layer = 0; layer < m.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    if (m.nomic || m.fused)
      product(block + "attn_qkv", 3 * d, d);
    else
      for (const char* part : {"attn_q", "attn_k", "attn_v"}) product(block + part, d, d);
    product(block + "attn_output", d, d);
    norm(block + "attn_output_norm");
    if (m.nomic) product(block + "ffn_gate", m.ffn, d);
    product(block + "ffn_up", m.ffn, d);
    product(block + "ffn_down", d, m.ffn);
    norm(block + "layer_output_norm");
  }
  if (m.scores > 0) {
    product("cls", d, d);
    product("cls.output", m.scores, d);
  }
  if (edit) edit(meta, tensors);
  write_tensors(path, meta, tensors);
}

}  // namespace flywheel::test
