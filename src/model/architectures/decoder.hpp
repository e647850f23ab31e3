// What decoders share: one attention block and one feed-forward block with options, around a residual stream. An
// architecture's page says which options its layers have.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "src/model/architecture.hpp"

namespace flywheel::inline v0::detail {

/// How a block reads the residual stream and adds to it: x + scale * post_norm(block(norm(x))).
struct residual_options {
  const char* norm = nullptr;
  const char* post_norm = nullptr;  ///< Null: none.
  float scale = 1;
};

struct attention_options {
  residual_options residual{"attn_norm", nullptr, 1};
  /// head_dim, scale, softcap, window and temperature; the block fills in the layer and its heads.
  graph::attention_attributes scores;
  std::optional<graph::rope_attributes> rope;  ///< Absent: positions are not rotated.
  bool rope_factors = true;                    ///< Use the file's, if it has any.
  bool norm_heads = false;                     ///< RMS norm of every head of queries and keys, before the rotation.
  bool sinks = false;
  bool output_gate = false;  ///< attn_q holds query and gate of every head; sigmoid(gate) times what it attended to.
};

struct feed_forward_options {
  residual_options residual{"ffn_norm", nullptr, 1};
  activation act = activation::silu;
};

struct output_options {
  float scale = 1;    ///< Of the logits.
  float softcap = 0;  ///< After that; 0: off.
};

/// Writes a decoder down, in the order of its data flow. Metadata that say that it is not causal are an error. After an
/// error everything does nothing; finish() gives it.
class decoder {
 public:
  decoder(const io::archive& file, const hyperparameters& h, graph_output output);

  /// Options that most architectures start from: the metadata's rotation with these pairs, scale 1 / sqrt(head_dim)
  /// unless the metadata has one.
  [[nodiscard]] attention_options attention_with(rope_pairs pairs) const;

  /// x = scale * rows of the embedding table.
  void embed(float scale = 1);
  /// x += attention(x): attn_q, attn_k, attn_v, or one attn_qkv of all their rows; attn_output; biases where the file
  /// has them. After the last layer's attention only the wanted outputs go on: nothing later mixes tokens.
  void attention(std::int64_t layer, const attention_options& options);
  /// x += ffn_down(act(ffn_gate x) * ffn_up x), or of one ffn_up with the gate's rows first; with experts, of those.
  void feed_forward(std::int64_t layer, const feed_forward_options& options);
  /// Final norm and, for logits, the output head: output.weight, or else the embedding table, and output.bias.
  [[nodiscard]] result<graph::graph> finish(const output_options& options = {});

  // The parts, for architectures that put them together in their own way.

  graph::value weight(std::int64_t layer, const char* part, std::initializer_list<std::int64_t> dims);
  graph::value optional_weight(std::int64_t layer, const char* part, std::initializer_list<std::int64_t> dims);
  /// RMS norm with the weight of this part ("attn_norm").
  graph::value norm(std::int64_t layer, const char* part, graph::value in);
  /// in times `part`.weight [n, columns of in], plus `part`.bias where the file has one.
  graph::value product(std::int64_t layer, const char* part, graph::value in, std::int64_t n, std::int64_t k);
  graph::value gated(std::int64_t layer, graph::value in, activation act);
  /// `router`: [r, n_expert], or invalid: the product with ffn_gate_inp.
  graph::value experts(std::int64_t layer, graph::value in, activation act, graph::value router = {});
  /// Adds a block's result to the stream.
  void add(std::int64_t layer, graph::value y, const residual_options& residual);
  /// Goes on with the wanted outputs' rows of x and y; called once, in the last layer.
  void select_outputs(graph::value& y);

  const io::archive& file;
  const hyperparameters& h;
  graph::builder b;
  graph::value table;  ///< token_embd.weight
  graph::value x;      ///< The residual stream.

 private:
  /// Fails when the file has a bias of this part, which is cut into rows.
  void refuse_bias(std::int64_t layer, const char* part);

  graph_output output_;
};

}  // namespace flywheel::inline v0::detail
