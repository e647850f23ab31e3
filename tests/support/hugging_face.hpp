// Makes Hugging Face folders for tests: from the tensors that the GGUF model should have, what the publisher's file
// holds is worked out backwards, with loops of its own.
#pragma once

#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace flywheel::test {

using nlohmann::json;

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// A tensor by name, in f32.
struct float_tensor {
  std::string name;
  shape dims;
  std::vector<float> values;
};

/// Writes model.safetensors. Matrices have type `matrices`, vectors `vectors`.
inline void write_weights(const std::filesystem::path& path, const std::vector<float_tensor>& tensors,
                          dtype matrices = dtype::f32, dtype vectors = dtype::f32) {
  std::vector<tiny_tensor> out;
  for (const float_tensor& t : tensors)
    out.push_back({{t.name, t.dims.rank() > 1 ? matrices : vectors, t.dims, 0}, t.values});
  write_tensors(path, {}, out, io::container::safetensors);
}

/// What a family does, as the test knows it.
struct hf_family {
  std::string architecture = {};                  ///< "LlamaForCausalLM"
  std::map<std::string, std::string> names = {};  ///< GGUF name without "blk.N." and ".weight" -> name in the folder.
  std::string layer = "model.layers.";
  bool pairs = false;           ///< Q and K rotate adjacent pairs.
  bool norms_plus_one = false;  ///< but for the names in plain_norms.
  std::vector<std::string> plain_norms = {};
  bool one_way = false;  ///< Its models cannot be written as folders.
  std::int64_t head_dim = 16;
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;  ///< Of a delta net.
};

inline std::map<std::string, std::string> decoder_names() {
  return {{"token_embd", "model.embed_tokens"},
          {"output_norm", "model.norm"},
          {"output", "lm_head"},
          {"attn_norm", "input_layernorm"},
          {"attn_q", "self_attn.q_proj"},
          {"attn_k", "self_attn.k_proj"},
          {"attn_v", "self_attn.v_proj"},
          {"attn_output", "self_attn.o_proj"},
          {"attn_q_norm", "self_attn.q_norm"},
          {"attn_k_norm", "self_attn.k_norm"},
          {"ffn_norm", "post_attention_layernorm"},
          {"ffn_gate", "mlp.gate_proj"},
          {"ffn_up", "mlp.up_proj"},
          {"ffn_down", "mlp.down_proj"}};
}

/// values[r][c] of the result is values[row(r)][column(c)].
inline float_tensor picked(const float_tensor& t, std::int64_t cols,
                           const std::function<std::int64_t(std::int64_t)>& row,
                           const std::function<std::int64_t(std::int64_t)>& column) {
  float_tensor out{t.name, t.dims, std::vector<float>(t.values.size())};
  const auto rows = static_cast<std::int64_t>(t.values.size()) / cols;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      out.values[static_cast<std::size_t>(r * cols + c)] =
          t.values[static_cast<std::size_t>(row(r) * cols + column(c))];
  return out;
}

/// What the folder holds for one tensor of the GGUF model; several for experts.
inline std::vector<float_tensor> stored_as(const hf_family& f, const float_tensor& gguf) {
  const auto same = [](std::int64_t i) { return i; };
  std::string name = gguf.name, layer;
  if (name.starts_with("blk.")) {
    const std::size_t dot = name.find('.', 4);
    layer = f.layer + name.substr(4, dot - 4) + ".";
    name = name.substr(dot + 1);
  }
  std::string ending;
  for (const char* e : {".weight", ".bias"})
    if (name.ends_with(e)) ending = e, name.resize(name.size() - ending.size());
  const auto known = f.names.find(name + ending);
  const auto plain = f.names.find(name);
  if (known == f.names.end() && plain == f.names.end()) throw std::invalid_argument("no name for " + gguf.name);
  std::string full = layer + (known != f.names.end() ? known->second : plain->second + ending);

  float_tensor t = gguf;
  const std::int64_t cols = t.dims.rank() < 2 ? 1 : t.dims.cols();
  if (f.pairs && (name == "attn_q" || name == "attn_k")) {
    const std::int64_t d = f.head_dim;  // stored halves: row h d + j d/2 + i is row h d + 2 i + j
    t = picked(
        t, cols, [&](std::int64_t r) { return r - r % d + r % d % (d / 2) * 2 + r % d / (d / 2); }, same);
  }
  const bool is_norm = name.ends_with("norm") && ending == ".weight";
  if (f.norms_plus_one && is_norm && std::find(f.plain_norms.begin(), f.plain_norms.end(), name) == f.plain_norms.end())
    for (float& x : t.values) x -= 1;

  if (f.value_heads > 0) {
    const std::int64_t per_key = f.value_heads / f.key_heads, dv = f.value_dim;
    // Stored value head s belongs to key head s / per_key; in GGUF it is number s % per_key * key_heads + s / per_key.
    const auto head = [&](std::int64_t s) { return s % per_key * f.key_heads + s / per_key; };
    const auto rows_of = [&](std::int64_t first, std::int64_t dim) {
      return [=](std::int64_t r) { return r < first ? r : first + head((r - first) / dim) * dim + (r - first) % dim; };
    };
    const std::int64_t qk = 2 * f.key_heads * f.key_dim;
    if (name == "attn_qkv") t = picked(t, cols, rows_of(qk, dv), same);
    if (name == "ssm_conv1d") t = picked(t, cols, rows_of(qk, dv), same), t.dims = {t.dims[0], 1, t.dims[1]};
    if (name == "attn_gate") t = picked(t, cols, rows_of(0, dv), same);
    if (name == "ssm_beta" || name == "ssm_alpha" || name == "ssm_dt" || name == "ssm_a")
      t = picked(t, cols, rows_of(0, 1), same);
    if (name == "ssm_out") t = picked(t, cols, same, rows_of(0, dv));
    if (name == "ssm_a")
      for (float& x : t.values) x = std::log(-x);
  }

  if (full.find("{}") == full.npos) {
    t.name = full;
    return {t};
  }
  std::vector<float_tensor> experts;  // one tensor for each
  const auto each = static_cast<std::size_t>(t.dims[1] * t.dims[2]);
  for (std::int64_t e = 0; e < t.dims[0]; ++e) {
    std::string one = full;
    const auto from = t.values.begin() + e * static_cast<std::ptrdiff_t>(each);
    experts.push_back({one.replace(one.find("{}"), 2, std::to_string(e)),
                       {t.dims[1], t.dims[2]},
                       std::vector<float>(from, from + static_cast<std::ptrdiff_t>(each))});
  }
  return experts;
}

/// Numbers that f32, f16 and bf16 all hold exactly, and that stay exact when 1 is taken away.
inline std::vector<float> exact_values(const shape& dims, std::uint64_t seed) {
  tiny_random random(seed);
  std::vector<float> values(static_cast<std::size_t>(dims.elements()));
  for (float& x : values) x = std::floor(random.uniform() * 127 - 63) / 64;
  return values;
}

}  // namespace flywheel::test
