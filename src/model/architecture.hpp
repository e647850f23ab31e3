// An architecture: how a model's metadata and tensors become a graph. To add one: a file in architectures/ with a
// function of this signature, and a line in architectures.inc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flywheel/core/result.hpp"
#include "flywheel/graph/builder.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::detail {

/// What the model's graph should end with.
enum class graph_output : std::uint8_t {
  logits,  ///< [outputs, n_vocab]
  hidden,  ///< [outputs, n_embd] after the final norm
};

/// Numbers that every transformer has, read and checked from `<architecture>.*` metadata.
struct hyperparameters {
  std::string architecture;
  std::int64_t n_vocab = 0;  ///< Rows of the embedding table.
  std::int64_t n_layers = 0;
  std::int64_t n_embd = 0;
  std::int64_t n_ff = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t n_ctx_train = 0;
  std::int64_t n_expert = 0;
  std::int64_t n_expert_used = 0;
  float norm_eps = 1e-5F;
  graph::rope_attributes rope;
};

/// Errors: malformed, naming the key.
[[nodiscard]] result<hyperparameters> read_hyperparameters(const io::archive& file);

struct architecture {
  std::string_view name;
  /// Writes the whole forward pass down.
  result<graph::graph> (*build)(const io::archive& file, const hyperparameters& h, graph_output output);
};

/// Error: unsupported, naming the architecture and those that are supported.
[[nodiscard]] result<const architecture*> find_architecture(std::string_view name);

}  // namespace flywheel::inline v0::detail
