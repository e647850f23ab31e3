#include "src/model/architecture.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "flywheel/detail/edit_distance.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/graph/rewrite.hpp"
#include "src/model/key_reader.hpp"

namespace flywheel::inline v0::detail {

#define FLYWHEEL_ARCHITECTURE(name, function) \
  result<graph::graph> function(const io::archive& file, const hyperparameters& h, graph_output output);
#include "src/model/architectures/architectures.inc"
#undef FLYWHEEL_ARCHITECTURE

namespace {

constexpr architecture architectures[] = {
#define FLYWHEEL_ARCHITECTURE(name, function) {name, function},
#include "src/model/architectures/architectures.inc"
#undef FLYWHEEL_ARCHITECTURE
};

/// "none", "linear", "yarn" or "longrope". Files that do not say it mean what else they hold: factors for long
/// sequences, as converters of Phi-3 write them, or a plain factor.
std::string rope_scaling_type(key_reader& keys, const io::archive& file) {
  if (keys.has("rope.scaling.type")) return keys.string_or("rope.scaling.type", "none");
  return file.find("rope_factors_long.weight") ? "longrope" : "linear";
}

void read_rope(key_reader& keys, const io::archive& file, hyperparameters& h) {
  h.rope.head_dim = h.head_dim;
  h.rope.n_rot = keys.integer_or("rope.dimension_count", h.head_dim, 2, h.head_dim);
  if (h.rope.n_rot % 2 != 0)
    keys.refuse("rope.dimension_count", errc::malformed, "an odd number of elements cannot rotate in pairs");
  h.rope.base = keys.number_or("rope.freq_base", 10000, 1.0001, 1e12);
  const std::string type = rope_scaling_type(keys, file);
  if (type == "none") return;
  double factor = keys.number_or("rope.scaling.factor", 0, 0, 1e9);
  if (factor == 0) factor = keys.number_or("rope.scale_linear", 1, 0, 1e9);  // the key of early files
  if (factor == 0) factor = 1;
  h.rope.freq_scale = 1 / factor;
  if (type == "linear") return;
  if (type != "yarn" && type != "longrope") {
    keys.refuse("rope.scaling.type", errc::unsupported,
                "unsupported rotary scaling '" + type + "'; known are none, linear, yarn and longrope");
    return;
  }
  h.rope.attn_factor = keys.number_or("rope.scaling.attn_factor", 1, 0, 1e3);
  h.rope.original_context =
      keys.integer_or("rope.scaling.original_context_length", h.n_ctx_train, 1, std::int64_t{1} << 31);
  h.long_rope = type == "longrope";
  if (h.long_rope) return;
  h.rope.yarn = true;
  h.rope.beta_fast = keys.number_or("rope.scaling.yarn_beta_fast", 32, 0.001, 1e6);
  h.rope.beta_slow = keys.number_or("rope.scaling.yarn_beta_slow", 1, 0.001, 1e6);
  // Models trained with a scale of their own for all dimensions divide YaRN's magnitude by that one.
  const double all_dims = keys.number_or("rope.scaling.yarn_log_multiplier", 0, 0, 1e3);
  if (factor > 1) h.rope.attn_factor /= 1 + 0.1 * all_dims * std::log(factor);
}

}  // namespace

result<hyperparameters> read_hyperparameters(const io::archive& file) {
  const io::metadata& meta = file.metadata();
  FLYWHEEL_TRY(const std::string_view name, meta.string("general.architecture"));
  hyperparameters h;
  h.architecture = std::string(name);
  const io::tensor_info* table = file.find("token_embd.weight");
  if (!table || table->dims.rank() != 2)
    return error{errc::malformed, "the model has no embedding table of two dimensions", "token_embd.weight"};
  h.n_vocab = table->dims[0];

  constexpr std::int64_t wide = std::int64_t{1} << 24;
  key_reader keys(meta, h.architecture);
  h.n_layers = keys.integer("block_count", 1, 4096);
  h.n_embd = keys.integer("embedding_length", 1, wide);
  const auto heads = keys.integers("attention.head_count", h.n_layers, 1, 65536);
  const auto kv_heads =
      keys.has("attention.head_count_kv") ? keys.integers("attention.head_count_kv", h.n_layers, 1, 65536) : heads;
  const char* width = keys.has("feed_forward_length") || !keys.has("expert_feed_forward_length")
                          ? "feed_forward_length"
                          : "expert_feed_forward_length";  // all layers have experts
  const auto widths = keys.integers(width, h.n_layers, 1, wide);
  for (std::size_t i = 0; i < heads.size(); ++i) {
    if (heads[i] % kv_heads[i] != 0)
      keys.refuse("attention.head_count_kv", errc::malformed,
                  std::to_string(kv_heads[i]) + " key heads do not divide " + std::to_string(heads[i]) + " heads");
    h.layers.push_back({heads[i], kv_heads[i], widths[i]});
  }
  h.n_heads = *std::max_element(heads.begin(), heads.end());
  h.n_kv_heads = *std::max_element(kv_heads.begin(), kv_heads.end());
  h.n_ff = *std::max_element(widths.begin(), widths.end());
  h.n_ctx_train = keys.integer_or("context_length", 2048, 1, std::int64_t{1} << 31);
  h.n_expert = keys.integer_or("expert_count", 0, 0, 65536);
  h.n_expert_used = keys.integer_or("expert_used_count", 0, 0, h.n_expert);
  h.n_ff_expert = keys.integer_or("expert_feed_forward_length", h.n_ff, 1, wide);
  h.expert_weights_scale = keys.float_or("expert_weights_scale", 1, -1e6, 1e6);
  h.norm_eps = keys.float_or("attention.layer_norm_rms_epsilon",
                             keys.number_or("attention.layer_norm_epsilon", 1e-5, 0, 1), 0, 1);
  h.attention_scale = keys.float_or("attention.scale", 0, 0, 1e6);
  h.window = keys.integer_or("attention.sliding_window", 0, 0, std::int64_t{1} << 31);
  if (keys.failure) return *keys.failure;
  if (keys.has("attention.key_length")) {
    h.head_dim = keys.integer("attention.key_length", 2, 65536);
  } else if (h.n_embd % h.n_heads != 0) {
    keys.refuse("attention.head_count", errc::malformed,
                std::to_string(h.n_heads) + " heads do not divide the embedding length " + std::to_string(h.n_embd));
  } else {
    h.head_dim = h.n_embd / h.n_heads;
  }
  if (keys.integer_or("attention.value_length", h.head_dim, 1, 65536) != h.head_dim)
    keys.refuse("attention.value_length", errc::unsupported, "unsupported: keys and values of different lengths");
  if (h.n_expert > 0 && h.n_expert_used == 0)
    keys.refuse("expert_used_count", errc::malformed, "a model with experts must say how many it uses");
  if (!keys.failure) read_rope(keys, file, h);
  if (keys.failure) return *keys.failure;
  return h;
}

result<const architecture*> find_architecture(std::string_view name) {
  std::string known;
  const architecture* nearest = nullptr;
  for (const architecture& a : architectures) {
    if (a.name == name) return &a;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
    if (!nearest || edit_distance(name, a.name) < edit_distance(name, nearest->name)) nearest = &a;
  }
  return error{errc::unsupported,
               "unsupported architecture '" + std::string(name) + "'; the nearest supported name is '" +
                   std::string(nearest->name) + "', all are: " + known,
               "general.architecture"};
}

result<const architecture*> architecture_of(const io::metadata& meta) {
  FLYWHEEL_TRY(const std::string_view name, meta.string("general.architecture"));
  auto found = find_architecture(name);
  if (found) return found;
  error e = std::move(found).error();
  const std::string prefix = std::string(name) + ".";
  std::string keys;
  for (const io::entry& entry : meta.entries())
    if (entry.key.starts_with(prefix)) keys += (keys.empty() ? "" : ", ") + entry.key.substr(prefix.size());
  e.message += keys.empty() ? "; the file has no keys " + prefix + "*" : "; the file's keys " + prefix + "*: " + keys;
  return e;
}

result<graph::graph> build_graph(const architecture& arch, const io::archive& file, const hyperparameters& h,
                                 graph_output output) {
  FLYWHEEL_TRY(graph::graph plain, arch.build(file, h, output));
  return optimized(std::move(plain));
}

result<graph::graph> optimized(graph::graph plain) {
  graph::graph whole = graph::optimize(std::move(plain));
  FLYWHEEL_CHECK(graph::validate(whole));
  return whole;
}

}  // namespace flywheel::inline v0::detail
