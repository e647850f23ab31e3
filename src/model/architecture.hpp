// An architecture: how a model's metadata and tensors become a graph. To add one: a file in architectures/ with a
// function of this signature, and a line in architectures.inc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/graph/builder.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::detail {

/// What the model's graph should end with.
enum class graph_output : std::uint8_t {
  logits,  ///< [outputs, n_vocab]
  hidden,  ///< [outputs, n_embd] after the final norm
};

/// What may differ from layer to layer.
struct layer_numbers {
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;  ///< Divides n_heads.
  std::int64_t n_ff = 0;
};

/// Numbers that every transformer has, read and checked from `<architecture>.*` metadata. What only some have, their
/// pages read for themselves (key_reader).
struct hyperparameters {
  std::string architecture;
  std::int64_t n_vocab = 0;  ///< Rows of the embedding table.
  std::int64_t n_layers = 0;
  std::int64_t n_embd = 0;
  std::int64_t n_ff = 0;  ///< Of the largest layer, like the numbers of heads.
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;
  std::vector<layer_numbers> layers;  ///< [n_layers]
  std::int64_t head_dim = 0;
  std::int64_t n_ctx_train = 0;
  std::int64_t n_expert = 0;
  std::int64_t n_expert_used = 0;
  std::int64_t n_ff_expert = 0;  ///< Of one expert.
  float expert_weights_scale = 1;
  float norm_eps = 1e-5F;
  float attention_scale = 0;  ///< Of the scores; 0: the architecture's own, usually 1 / sqrt(head_dim).
  std::int64_t window = 0;    ///< Positions of sliding windows; 0: none.
  graph::rope_attributes rope;
  bool long_rope = false;  ///< The file has factors for short and for long sequences.

  [[nodiscard]] const layer_numbers& of(std::int64_t layer) const { return layers[static_cast<std::size_t>(layer)]; }
};

/// Errors: malformed, naming the key.
[[nodiscard]] result<hyperparameters> read_hyperparameters(const io::archive& file);

struct architecture {
  std::string_view name;
  /// Writes the whole forward pass down.
  result<graph::graph> (*build)(const io::archive& file, const hyperparameters& h, graph_output output);
};

/// Error: unsupported, naming the architecture, the nearest name that is supported, and all of them.
[[nodiscard]] result<const architecture*> find_architecture(std::string_view name);
/// The architecture of a file. The error also says which of the name's own keys the file has.
[[nodiscard]] result<const architecture*> architecture_of(const io::metadata& meta);

/// The file's graph, rewritten and checked. Errors: the architecture's own.
[[nodiscard]] result<graph::graph> build_graph(const architecture& arch, const io::archive& file,
                                               const hyperparameters& h, graph_output output);
/// The second half of build_graph.
[[nodiscard]] result<graph::graph> optimized(graph::graph plain);

}  // namespace flywheel::inline v0::detail
