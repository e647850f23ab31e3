// A model's graph before rewrites, and who uses what in it.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::quant {

class model_graph {
 public:
  /// The graph that ends with logits. Errors: those of reading the architecture.
  [[nodiscard]] static result<model_graph> read(const io::archive& model);

  model_graph() = default;
  model_graph(model_graph&&) noexcept = default;  // copies would hold pointers to the original's nodes
  model_graph& operator=(model_graph&&) noexcept = default;

  graph::graph whole;

  /// Nodes with this input, each as often as it has it.
  [[nodiscard]] const std::vector<const graph::node*>& readers(graph::value v) const { return readers_[v.index]; }
  [[nodiscard]] const graph::node& producer(graph::value v) const { return whole.nodes[whole.at(v).producer]; }
  [[nodiscard]] bool is_output(graph::value v) const;
  /// Whether this norm's result are the hidden states that embeddings are made of.
  [[nodiscard]] bool makes_hidden_states(const graph::node& norm) const;
  /// How many inputs of nodes are this tensor, or a part of it; or have rows in common with these.
  [[nodiscard]] std::size_t uses_of_tensor(const std::string& name) const;
  [[nodiscard]] std::size_t uses_of_rows(const graph::weight_info& rows) const;

 private:
  void index();
  std::vector<std::string> hidden_weights_;  ///< Those of the operation that makes the hidden states.
  std::vector<std::vector<const graph::node*>> readers_;
};

}  // namespace flywheel::inline v0::quant
