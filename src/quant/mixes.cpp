// Rules: llama.cpp's llama-quant.cpp, as of 2026, which users' expectations of the names come from.
#include "src/quant/mixes.hpp"

#include <algorithm>
#include <charconv>

#include "src/model/tensor_types.hpp"

namespace flywheel::inline v0::quant {
namespace {

using enum dtype;

constexpr mix mix_table[] = {
    {"F32", f32, f32, f32, 0},
    {"F16", f16, f16, f16, 1},
    {"BF16", bf16, bf16, bf16, 32},
    {"Q4_0", q4_0, q6_k, q4_0, 2},
    {"Q4_1", q4_1, q6_k, q4_1, 3},
    {"Q5_0", q5_0, q6_k, q5_0, 8},
    {"Q5_1", q5_1, q6_k, q5_1, 9},
    {"Q8_0", q8_0, q8_0, q8_0, 7},
    {"Q2_K", q2_k, q6_k, q2_k, 10},
    {"Q2_K_S", q2_k, q6_k, q2_k, 21},
    {"Q3_K_S", q3_k, q6_k, q3_k, 11},
    {"Q3_K_M", q3_k, q6_k, q3_k, 12},
    {"Q3_K_L", q3_k, q6_k, q3_k, 13},
    {"Q4_K_S", q4_k, q6_k, q4_k, 14},
    {"Q4_K_M", q4_k, q6_k, q4_k, 15},
    {"Q5_K_S", q5_k, q6_k, q5_k, 16},
    {"Q5_K_M", q5_k, q6_k, q5_k, 17},
    {"Q6_K", q6_k, q6_k, q6_k, 18},
    {"IQ1_S", iq1_s, q5_k, q2_k, 24},
    {"IQ1_M", iq1_m, q5_k, q2_k, 31},
    {"IQ2_XXS", iq2_xxs, q5_k, q2_k, 19},
    {"IQ2_XS", iq2_xs, q5_k, q2_k, 20},
    {"IQ2_S", iq2_xs, q5_k, iq3_s, 28},
    {"IQ2_M", iq2_s, q5_k, iq3_s, 29},
    {"IQ3_XXS", iq3_xxs, q5_k, iq3_s, 23},
    {"IQ3_XS", iq3_s, q6_k, iq3_s, 22},
    {"IQ3_S", iq3_s, q6_k, iq3_s, 26},
    {"IQ3_M", iq3_s, q6_k, iq3_s, 27},
    {"IQ4_NL", iq4_nl, q6_k, iq4_nl, 25},
    {"IQ4_XS", iq4_xs, q6_k, iq4_xs, 30},
    {"TQ1_0", tq1_0, q6_k, q4_k, 36},
    {"TQ2_0", tq2_0, q6_k, q4_k, 37},
    {"MXFP4_MOE", mxfp4, q8_0, q8_0, 38},
};

/// As capitals: names of types are ASCII.
bool same_name(std::string_view a, std::string_view b) noexcept {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return upper(x) == upper(y); });
}

/// The first and the last eighth of the layers, and every third between them.
bool gets_more_bits(std::int64_t i, std::int64_t n) noexcept {
  return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) noexcept {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool below_three_bits(const mix& m) noexcept { return m.name.starts_with("IQ1") || m.name.starts_with("IQ2"); }
bool generous_iq2(const mix& m) noexcept { return is_one_of(m.name, {"IQ2_S", "IQ2_M"}); }

dtype value_type(const mix& m, const model_facts& f, std::int64_t layer) noexcept {
  const std::string_view name = m.name;
  if (below_three_bits(m)) return f.shared_heads >= 4 || f.experts >= 4 ? q4_k : generous_iq2(m) ? iq3_s : q2_k;
  const auto at = std::lower_bound(f.value_layers.begin(), f.value_layers.end(), layer);
  const std::int64_t i = at - f.value_layers.begin(), n = static_cast<std::int64_t>(f.value_layers.size());
  dtype type = m.base;
  if (name == "Q2_K") type = q3_k;
  if (name == "Q3_K_M") type = i < 2 ? q5_k : q4_k;
  if (name == "Q3_K_L") type = q5_k;
  if (name == "Q4_K_S" && i < 4) type = q5_k;
  if (is_one_of(name, {"Q4_K_M", "Q5_K_M"}) && gets_more_bits(i, n)) type = q6_k;
  if (name == "IQ3_XXS" && !f.importance) type = iq3_s;
  if (name == "IQ3_M") type = q4_k;
  if (f.shared_heads >= 4) {  // values are small beside queries, so bits for them cost little
    if (is_one_of(name, {"Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"})) type = q4_k;
    if (is_one_of(name, {"IQ4_NL", "IQ4_XS"})) type = q5_k;
  }
  if (f.layers == 80 && f.shared_heads > 1 && (type == q3_k || type == q4_k)) type = q5_k;  // 70 B models
  return f.experts == 8 ? q8_0 : type;
}

dtype down_type(const mix& m, const model_facts& f, std::int64_t layer) noexcept {
  const std::string_view name = m.name;
  const std::int64_t n = f.layers;
  const bool early = layer < n / 8;
  if (below_three_bits(m)) return !early ? m.base : generous_iq2(m) ? iq3_s : q2_k;
  if (name == "Q2_K") return q3_k;
  if (name == "Q2_K_S" && early) return q4_k;
  if (name == "Q3_K_M") return layer < n / 16 ? q5_k : !f.falcon || gets_more_bits(layer, n) ? q4_k : q3_k;
  if (name == "Q3_K_L") return f.falcon ? q4_k : q5_k;
  if (name == "Q4_K_S" && early && !f.falcon) return q5_k;
  if (name == "Q4_K_M" && f.falcon) return layer < n / 16 ? q6_k : gets_more_bits(layer, n) ? q5_k : q4_k;
  if (is_one_of(name, {"Q4_K_M", "Q5_K_M"}) && gets_more_bits(layer, n)) return q6_k;
  if (name == "IQ3_XXS" && !f.importance) return early ? q4_k : q3_k;
  if (name == "IQ3_M" && (early || (f.experts == 8 && gets_more_bits(layer, n)))) return q4_k;
  if (is_one_of(name, {"IQ4_NL", "IQ4_XS"}) && early && !f.importance) return q5_k;
  if (name == "Q4_0" && early && f.importance) return q4_1;
  if (name == "Q5_0" && early && f.importance) return q5_1;
  return m.base;
}

dtype attention_output_type(const mix& m, const model_facts& f) noexcept {
  const std::string_view name = m.name;
  if (below_three_bits(m)) {
    if (f.experts == 8) return q5_k;
    return generous_iq2(m) ? iq3_s : name.starts_with("IQ1") ? iq2_xxs : m.base;
  }
  if (f.falcon) return name == "Q3_K_L" ? q4_k : m.base;
  if (f.experts == 8)
    return is_one_of(name, {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M",
                            "IQ4_NL", "IQ4_XS"})
               ? q5_k
               : m.base;
  if (name == "Q2_K") return q3_k;
  if (name == "IQ3_XXS") return iq3_s;
  if (is_one_of(name, {"Q3_K_M", "IQ3_M"})) return q4_k;
  return name == "Q3_K_L" ? q5_k : m.base;
}

}  // namespace

tensor_kind kind_of(std::string_view name) noexcept {
  using enum tensor_kind;
  if (name == "output.weight") return output;
  if (name == "token_embd.weight" || name == "per_layer_token_embd.weight") return token_embd;
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight")) return attn_v;
  if (has("attn_k.weight")) return attn_k;
  if (has("attn_q.weight")) return attn_q;
  if (has("attn_output.weight")) return attn_output;
  if (has("ffn_up")) return ffn_up;
  if (has("ffn_gate")) return ffn_gate;
  return has("ffn_down") ? ffn_down : other;
}

std::string_view to_string(tensor_kind kind) noexcept {
  constexpr std::string_view names[] = {"token_embd",  "output",   "attn_q", "attn_k",   "attn_v",
                                        "attn_output", "ffn_gate", "ffn_up", "ffn_down", "other"};
  return names[static_cast<std::size_t>(kind)];
}

std::int64_t layer_of(std::string_view name) noexcept {
  std::int64_t layer = -1;
  if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

bool may_quantize(const io::tensor_info& tensor) noexcept {
  const dtype_info* facts = info(tensor.type);
  if (facts == nullptr || facts->kind == dtype_kind::integer) return false;
  if (detail::stays_f32(tensor.name, tensor.dims.rank())) return false;
  // Small, or convolutions, tables and codebooks.
  for (const std::string_view part :
       {"altup", "laurel", "per_layer_model_proj", "shortconv.conv", "time_mix_", "attn_rel_b", "position_embd",
        "pos_embd", "rel_pos", "patch_embd", "patch_merger", "sam.n", "indexer.k_proj", "indexer.q_proj", "ssm_conv1d",
        "codebook", "code_embd"})
    if (tensor.name.find(part) != std::string::npos) return false;
  return true;
}

dtype fitting(dtype type, std::int64_t cols) noexcept {
  const auto whole = [&](dtype t) { return cols % info(t)->block_elements == 0; };
  if (whole(type)) return type;
  dtype next = iq4_nl;
  switch (type) {
    case q8_g128:
      return q8_channel;
    case q4_g128:
      next = q4_channel;
      break;
    case q4_k:
      next = q5_0;
      break;
    case q5_k:
      next = q5_1;
      break;
    case q6_k:
      next = q8_0;
      break;
    case tq1_0:
    case tq2_0:
      next = q4_0;
      break;
    default:
      break;
  }
  return whole(next) ? next : f16;
}

std::span<const mix> all_mixes() noexcept { return mix_table; }

const mix* find_mix(std::string_view name) noexcept {
  for (const std::string_view plain : {"Q3_K", "Q4_K", "Q5_K"})
    if (same_name(name, plain))
      return &*std::find_if(std::begin(mix_table), std::end(mix_table),
                            [&](const mix& m) { return m.name.starts_with(plain) && m.name.ends_with("_M"); });
  for (const mix& m : mix_table)
    if (same_name(name, m.name)) return &m;
  return nullptr;
}

const mix* pure_mix(dtype type) noexcept {
  const mix* found = nullptr;
  for (const mix& m : mix_table)
    if (m.base == type && (found == nullptr || m.name == to_string(type))) found = &m;
  return found;
}

model_facts facts_of(const io::archive& file, bool importance) {
  const io::metadata& meta = file.metadata();
  const std::string arch(meta.string("general.architecture").value_or(std::string_view()));
  /// A number, or the first of one per layer.
  const auto number = [&](std::string_view key) -> std::int64_t {
    const std::string full = arch + "." + std::string(key);
    if (const auto one = meta.integer(full)) return *one;
    const auto many = meta.integers(full);
    return many && !many->empty() ? many->front() : 0;
  };
  model_facts f;
  f.layers = number("block_count");
  const std::int64_t heads = number("attention.head_count"), kv_heads = number("attention.head_count_kv");
  f.shared_heads = heads > 0 && kv_heads > 0 ? heads / kv_heads : 1;
  f.experts = number("expert_count");
  f.tied = file.find("output.weight") == nullptr;
  f.falcon = arch == "falcon";
  f.importance = importance;
  for (const io::tensor_info& t : file.tensors())
    if (kind_of(t.name) == tensor_kind::attn_v) f.value_layers.push_back(layer_of(t.name));
  std::sort(f.value_layers.begin(), f.value_layers.end());
  return f;
}

dtype type_in_mix(const mix& m, const model_facts& f, const io::tensor_info& tensor) noexcept {
  const std::int64_t layer = std::max<std::int64_t>(0, layer_of(tensor.name));
  const tensor_kind kind = kind_of(tensor.name);
  const bool plain = info(m.base)->kind == dtype_kind::real;
  if (plain) return m.base;
  if (kind == tensor_kind::output || (f.tied && tensor.name == "token_embd.weight"))
    return f.falcon || tensor.dims.cols() % info(m.base)->block_elements != 0 ? q8_0 : m.output;
  if (m.base == mxfp4) return tensor.dims.rank() > 2 ? mxfp4 : q8_0;  // experts
  switch (kind) {
    case tensor_kind::token_embd:
      return m.embedding;
    case tensor_kind::attn_v:
      return value_type(m, f, layer);
    case tensor_kind::attn_k:
      if (f.experts == 8) return below_three_bits(m) ? q4_k : q8_0;
      [[fallthrough]];
    case tensor_kind::attn_q:
      return m.name == "IQ3_XS" ? iq3_xxs : m.name == "IQ3_XXS" ? iq2_s : m.base;
    case tensor_kind::attn_output:
      return attention_output_type(m, f);
    case tensor_kind::ffn_down:
      return down_type(m, f, layer);
    case tensor_kind::ffn_gate:
    case tensor_kind::ffn_up:
      return m.name == "IQ3_XS" && layer >= f.layers / 8 && layer < 7 * f.layers / 8 ? iq3_xxs : m.base;
    default:
      return m.base;
  }
}

}  // namespace flywheel::inline v0::quant
