// Writing a graph down, one line per operation. The first error is kept and everything after it does nothing, so that
// an architecture reads like its formulas and checks once, at finish().
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::graph {

class FLYWHEEL_API builder {
 public:
  /// Weights are looked up in `file`, which must outlive the builder.
  explicit builder(const io::archive& file) : file_(&file) {}

  /// A tensor of the file with exactly these extents (outermost first); a vector is also a matrix of one row. Missing
  /// or different: malformed.
  value weight(const std::string& name, std::initializer_list<std::int64_t> dims);
  /// The same, or an invalid value when the file has no such tensor.
  value optional_weight(const std::string& name, std::initializer_list<std::int64_t> dims);
  /// Rows [first, first + count) of a tensor with exactly these extents, or of each of its matrices when it has three:
  /// a part of a fused product as a weight of its own.
  value weight_rows(const std::string& name, std::initializer_list<std::int64_t> dims, std::int64_t first,
                    std::int64_t count);

  value token_ids();
  value positions();
  value token_types();
  value embed(value table, value rows);
  value rms_norm(value x, value weight, float eps, std::int64_t group = 0);
  value layer_norm(value x, value weight, value bias, float eps);
  value matmul(value x, value weight, value bias = {});  ///< x weight^T + bias
  value rope(value x, const rope_attributes& attributes, value factors = {}, value long_factors = {});
  value attention(value q, value k, value v, const attention_attributes& attributes, value sinks = {});
  /// What the layer's tensors are called is the architecture's business: qkv and so on as in delta_net_attributes.
  struct delta_net_inputs {
    value qkv, z, beta, alpha, taps, dt, a, norm;
  };
  value delta_net(const delta_net_inputs& in, const delta_net_attributes& attributes);
  value glu(value gate, value up, activation act);
  value activate(value x, activation act);
  value add(value a, value b);
  value scale(value x, float factor, value weight = {});
  value softcap(value x, float cap);
  value columns(value x, std::int64_t first, std::int64_t count, std::int64_t step = 0);
  value select_outputs(value x);
  /// What an expert product may have beside its matrices; each may be invalid.
  struct moe_extras {
    value gate_bias, up_bias, down_bias, selection_bias, expert_scale;
  };
  value moe_ffn(value x, value router, value gate, value up, value down, const moe_attributes& attributes,
                const moe_extras& extras = {});

  /// Marks a result of the graph.
  void output(value v);
  /// Keeps `e` unless an error was kept before.
  void fail(error e);
  /// The graph, or the first error.
  [[nodiscard]] result<graph> finish();

 private:
  value append(op kind, std::vector<value> inputs, op_attributes attributes);
  value append_weight(weight_info info);
  [[nodiscard]] const io::tensor_info* find(const std::string& name, const shape& want);
  const io::archive* file_;
  graph graph_;
  std::optional<error> error_;
};

}  // namespace flywheel::inline v0::graph
