// Where a graph, before rewrites, lets scales move from one layer into another.
#include <algorithm>
#include <optional>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/transform.hpp"
#include "src/quant/model_graph.hpp"

namespace flywheel::inline v0::quant {
namespace {

class link_finder {
 public:
  explicit link_finder(const model_graph& g) : g_(g) {}

  [[nodiscard]] std::vector<channel_link> find() const {
    std::vector<channel_link> found;
    for (const graph::node& n : g_.whole.nodes) {
      std::optional<channel_link> link;
      if (n.kind == graph::op::rms_norm || n.kind == graph::op::layer_norm)
        link = of_norm(n);
      else if (n.kind == graph::op::attention)
        link = of_values(n);
      else if (n.kind == graph::op::glu)
        link = of_hidden(n);
      if (link) found.push_back(*std::move(link));
    }
    return found;
  }

 private:
  /// The tensor behind a value, if nothing else uses any part of it that other nodes do not share with this reader.
  [[nodiscard]] const graph::weight_info* own(graph::value v) const {
    const graph::weight_info* w = g_.whole.weight_of(v);
    return w && g_.uses_of_tensor(w->name) == 1 ? w : nullptr;
  }

  /// Adds the matrices that multiply `x`; false when something else looks at it, or at those matrices.
  [[nodiscard]] bool add_readers(graph::value x, channel_link& link) const {
    std::vector<std::string> names;
    std::vector<std::size_t> uses;
    const auto add = [&](graph::value weight) {
      const graph::weight_info* w = g_.whole.weight_of(weight);
      if (!w) return false;
      const auto at = std::find(names.begin(), names.end(), w->name);
      if (at == names.end()) {
        names.push_back(w->name);
        uses.push_back(1);
      } else {
        ++uses[static_cast<std::size_t>(at - names.begin())];
      }
      return true;
    };
    for (const graph::node* n : g_.readers(x)) {
      bool fits = false;
      if (n->kind == graph::op::linear)
        fits = n->inputs[0] == x && add(n->inputs[1]);
      else if (n->kind == graph::op::moe_ffn)
        fits = n->inputs[graph::moe_attributes::router] != x && add(n->inputs[graph::moe_attributes::gate]) &&
               add(n->inputs[graph::moe_attributes::up]);
      if (!fits) return false;
    }
    for (std::size_t i = 0; i < names.size(); ++i)
      if (g_.uses_of_tensor(names[i]) != uses[i]) return false;
    link.read_by = std::move(names);
    return !link.read_by.empty() && !g_.is_output(x);
  }

  [[nodiscard]] std::optional<channel_link> of_norm(const graph::node& n) const {
    channel_link link;
    link.of = channel_link::kind::norm;
    if (n.as<graph::norm_attributes>().group != 0 || n.inputs.size() < 2 || g_.makes_hidden_states(n))
      return std::nullopt;
    for (std::size_t i = 1; i < n.inputs.size(); ++i) {
      if (!n.inputs[i].valid()) continue;
      const graph::weight_info* w = own(n.inputs[i]);
      if (!w) return std::nullopt;
      link.made_by.push_back({w->name, w->first_row});
    }
    if (!n.inputs[1].valid()) return std::nullopt;
    link.channels = g_.whole.at(n.outputs[0]).cols;
    return add_readers(n.outputs[0], link) ? std::optional(std::move(link)) : std::nullopt;
  }

  /// Rows of the product that alone makes `x`, whose result alone `x` is.
  [[nodiscard]] bool add_product(graph::value x, channel_link& link) const {
    const graph::node& n = g_.producer(x);
    if (n.kind != graph::op::linear || g_.readers(x).size() != 1 || g_.is_output(x)) return false;
    const graph::weight_info* w = g_.whole.weight_of(n.inputs[1]);
    if (!w || g_.uses_of_rows(*w) != 1) return false;
    link.made_by.push_back({w->name, w->first_row});
    if (n.as<graph::linear_attributes>().biases && n.inputs[2].valid()) {
      const graph::weight_info* bias = own(n.inputs[2]);
      if (!bias) return false;
      link.made_by.push_back({bias->name, bias->first_row});
    }
    link.channels = g_.whole.at(x).cols;
    return true;
  }

  [[nodiscard]] std::optional<channel_link> of_values(const graph::node& n) const {
    using input = graph::attention_attributes::input;
    const auto& a = n.as<graph::attention_attributes>();
    channel_link link;
    link.of = channel_link::kind::values;
    link.head_dim = a.head_dim;
    link.shared_by = a.n_heads / a.n_kv_heads;
    // Later layers may read what this one stored.
    for (const graph::node& other : g_.whole.nodes)
      if (&other != &n && other.kind == graph::op::attention &&
          other.as<graph::attention_attributes>().layer == a.layer && a.causal)
        return std::nullopt;
    if (!n.inputs[input::v].valid() || n.inputs[input::k] == n.inputs[input::v] ||
        !add_product(n.inputs[input::v], link))
      return std::nullopt;
    graph::value out = n.outputs[0];
    while (g_.readers(out).size() == 1 && g_.readers(out)[0]->kind == graph::op::select_outputs)
      out = g_.readers(out)[0]->outputs[0];
    return add_readers(out, link) ? std::optional(std::move(link)) : std::nullopt;
  }

  [[nodiscard]] std::optional<channel_link> of_hidden(const graph::node& n) const {
    channel_link link;
    link.of = channel_link::kind::hidden;
    if (n.as<graph::glu_attributes>().act == activation::clamped_swish || !add_product(n.inputs[1], link) ||
        g_.whole.at(n.inputs[0]).cols != link.channels)
      return std::nullopt;
    return add_readers(n.outputs[0], link) ? std::optional(std::move(link)) : std::nullopt;
  }

  const model_graph& g_;
};

}  // namespace

result<std::vector<channel_link>> find_channel_links(const io::archive& model) {
  return detail::guarded([&]() -> result<std::vector<channel_link>> {
    FLYWHEEL_TRY(const model_graph g, model_graph::read(model));
    return link_finder(g).find();
  });
}

}  // namespace flywheel::inline v0::quant
