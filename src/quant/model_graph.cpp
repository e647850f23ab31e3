#include "src/quant/model_graph.hpp"

#include <algorithm>

#include "flywheel/detail/try.hpp"
#include "src/model/architecture.hpp"

namespace flywheel::inline v0::quant {
namespace {

/// Rows of one matrix that a weight takes.
std::int64_t used_rows(const graph::weight_info& w) {
  return w.dims.rank() < 2 ? w.dims.elements() : w.dims[w.dims.rank() - 2];
}

}  // namespace

result<model_graph> model_graph::read(const io::archive& model) {
  FLYWHEEL_TRY(const detail::architecture* arch, detail::architecture_of(model.metadata()));
  FLYWHEEL_TRY(const detail::hyperparameters numbers, detail::read_hyperparameters(model));
  model_graph made;
  FLYWHEEL_TRY(made.whole, arch->build(model, numbers, detail::graph_output::logits));
  made.index();
  FLYWHEEL_TRY(const graph::graph hidden, arch->build(model, numbers, detail::graph_output::hidden));
  for (const graph::value v : hidden.outputs)
    for (const graph::value input : hidden.nodes[hidden.at(v).producer].inputs)
      if (const graph::weight_info* w = input.valid() ? hidden.weight_of(input) : nullptr)
        made.hidden_weights_.push_back(w->name);
  return made;
}

bool model_graph::makes_hidden_states(const graph::node& norm) const {
  return std::any_of(norm.inputs.begin(), norm.inputs.end(), [&](graph::value v) {
    const graph::weight_info* w = v.valid() ? whole.weight_of(v) : nullptr;
    return w && std::find(hidden_weights_.begin(), hidden_weights_.end(), w->name) != hidden_weights_.end();
  });
}

void model_graph::index() {
  readers_.resize(whole.values.size());
  for (const graph::node& n : whole.nodes)
    for (const graph::value v : n.inputs)
      if (v.valid()) readers_[v.index].push_back(&n);
}

bool model_graph::is_output(graph::value v) const {
  return std::find(whole.outputs.begin(), whole.outputs.end(), v) != whole.outputs.end();
}

std::size_t model_graph::uses_of_tensor(const std::string& name) const {
  std::size_t uses = 0;
  for (std::size_t i = 0; i < whole.values.size(); ++i)
    if (const graph::weight_info* w = whole.weight_of({static_cast<std::uint32_t>(i)}); w && w->name == name)
      uses += readers_[i].size();
  return uses;
}

std::size_t model_graph::uses_of_rows(const graph::weight_info& rows) const {
  std::size_t uses = 0;
  for (std::size_t i = 0; i < whole.values.size(); ++i)
    if (const graph::weight_info* w = whole.weight_of({static_cast<std::uint32_t>(i)});
        w && w->name == rows.name && w->first_row < rows.first_row + used_rows(rows) &&
        rows.first_row < w->first_row + used_rows(*w))
      uses += readers_[i].size();
  return uses;
}

}  // namespace flywheel::inline v0::quant
