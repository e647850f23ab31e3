#include "src/model/architecture.hpp"

#include <cmath>
#include <limits>

#include "flywheel/detail/try.hpp"

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

/// Reads `<architecture>.<key>` and checks ranges; keeps the first failure.
class key_reader {
 public:
  key_reader(const io::metadata& meta, std::string architecture)
      : meta_(meta), prefix_(std::move(architecture) + ".") {}

  [[nodiscard]] bool has(const char* key) const { return meta_.contains(prefix_ + key); }

  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) {
    const std::string name = prefix_ + key;
    if (failure) return low;
    // Some writers give one number per layer. Equal ones are as good as one.
    if (auto many = meta_.integers(name); many && !many->empty()) {
      for (std::int64_t value : *many)
        if (value != many->front()) {
          failure = error{errc::unsupported, "unsupported: the layers of this model differ in this number", name};
          return low;
        }
      return check(name, many->front(), low, high);
    }
    auto value = meta_.integer(name);
    if (!value) {
      failure = std::move(value).error();
      return low;
    }
    return check(name, *value, low, high);
  }
  std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t low, std::int64_t high) {
    return has(key) ? integer(key, low, high) : otherwise;
  }
  double number_or(const char* key, double otherwise, double low, double high) {
    const std::string name = prefix_ + key;
    if (failure || !has(key)) return otherwise;
    auto value = meta_.number(name);
    if (!value) {
      failure = std::move(value).error();
    } else if (!std::isfinite(*value) || *value < low || *value > high) {
      failure = error{errc::malformed, "the number " + std::to_string(*value) + " is out of range", name};
    } else {
      return *value;
    }
    return otherwise;
  }
  std::string string_or(const char* key, std::string otherwise) {
    const std::string name = prefix_ + key;
    if (failure || !has(key)) return otherwise;
    auto value = meta_.string(name);
    if (!value) {
      failure = std::move(value).error();
      return otherwise;
    }
    return std::string(*value);
  }
  void refuse(const char* key, errc code, std::string message) {
    if (!failure) failure = error{code, std::move(message), prefix_ + key};
  }

  std::optional<error> failure;

 private:
  std::int64_t check(const std::string& name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value >= low && value <= high) return value;
    failure = error{errc::malformed,
                    "the number " + std::to_string(value) + " is not between " + std::to_string(low) + " and " +
                        std::to_string(high),
                    name};
    return low;
  }
  const io::metadata& meta_;
  std::string prefix_;
};

void read_rope(key_reader& keys, hyperparameters& h) {
  h.rope.head_dim = h.head_dim;
  h.rope.n_rot = keys.integer_or("rope.dimension_count", h.head_dim, 2, h.head_dim);
  if (h.rope.n_rot % 2 != 0)
    keys.refuse("rope.dimension_count", errc::malformed, "an odd number of elements cannot rotate in pairs");
  h.rope.base = keys.number_or("rope.freq_base", 10000, 1.0001, 1e12);
  const std::string type = keys.string_or("rope.scaling.type", "none");
  double factor = keys.number_or("rope.scaling.factor", 0, 0, 1e9);
  if (factor == 0) factor = keys.number_or("rope.scale_linear", 1, 0, 1e9);  // the key of early files
  if (factor == 0) factor = 1;
  if (type == "none" && !keys.has("rope.scale_linear")) return;
  if (type == "linear" || type == "none") {
    h.rope.freq_scale = 1 / factor;
  } else if (type == "yarn") {
    h.rope.yarn = true;
    h.rope.freq_scale = 1 / factor;
    h.rope.attn_factor = keys.number_or("rope.scaling.attn_factor", 1, 0, 1e3);
    h.rope.original_context =
        keys.integer_or("rope.scaling.original_context_length", h.n_ctx_train, 1, std::int64_t{1} << 31);
    h.rope.beta_fast = keys.number_or("rope.scaling.yarn_beta_fast", 32, 0.001, 1e6);
    h.rope.beta_slow = keys.number_or("rope.scaling.yarn_beta_slow", 1, 0.001, 1e6);
  } else {
    keys.refuse("rope.scaling.type", errc::unsupported,
                "unsupported rotary scaling '" + type + "'; known are none, linear and yarn");
  }
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
  h.n_heads = keys.integer("attention.head_count", 1, 65536);
  h.n_kv_heads = keys.integer_or("attention.head_count_kv", h.n_heads, 1, h.n_heads);
  h.n_ff = keys.integer("feed_forward_length", 1, wide);
  h.n_ctx_train = keys.integer_or("context_length", 2048, 1, std::int64_t{1} << 31);
  h.n_expert = keys.integer_or("expert_count", 0, 0, 65536);
  h.n_expert_used = keys.integer_or("expert_used_count", 0, 0, h.n_expert);
  h.norm_eps = static_cast<float>(keys.number_or("attention.layer_norm_rms_epsilon", 1e-5, 0, 1));
  if (keys.failure) return *keys.failure;
  if (keys.has("attention.key_length")) {
    h.head_dim = keys.integer("attention.key_length", 2, 65536);
  } else if (h.n_embd % h.n_heads != 0) {
    keys.refuse("attention.head_count", errc::malformed,
                std::to_string(h.n_heads) + " heads do not divide the embedding length " + std::to_string(h.n_embd));
  } else {
    h.head_dim = h.n_embd / h.n_heads;
  }
  if (h.n_heads % h.n_kv_heads != 0)
    keys.refuse("attention.head_count_kv", errc::malformed,
                std::to_string(h.n_kv_heads) + " key heads do not divide " + std::to_string(h.n_heads) + " heads");
  if (keys.integer_or("attention.value_length", h.head_dim, 1, 65536) != h.head_dim)
    keys.refuse("attention.value_length", errc::unsupported, "unsupported: keys and values of different lengths");
  if (h.n_expert > 0 && h.n_expert_used == 0)
    keys.refuse("expert_used_count", errc::malformed, "a model with experts must say how many it uses");
  if (!keys.failure) read_rope(keys, h);
  if (keys.failure) return *keys.failure;
  return h;
}

result<const architecture*> find_architecture(std::string_view name) {
  std::string known;
  for (const architecture& a : architectures) {
    if (a.name == name) return &a;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  return error{errc::unsupported, "unsupported architecture '" + std::string(name) + "'; supported: " + known,
               "general.architecture"};
}

}  // namespace flywheel::inline v0::detail
