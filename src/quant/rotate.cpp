// Rotation of the residual stream and of heads. For a stream x and an orthogonal Q, x' = x Q everywhere: tables and
// matrices that write to it become W' with W' z = (W z) Q, those that read an RMS norm of it get the norm's weight D
// and Q: W' = W D Q, since norm(x Q) = norm(x) Q when the norm has no weight of its own.
#include <algorithm>
#include <numeric>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/transform.hpp"
#include "src/model/basis.hpp"
#include "src/quant/edited_archive.hpp"
#include "src/quant/model_graph.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::string_view head_name = "output.weight";

error cannot(std::string what, std::string where) {
  return error{errc::unsupported, "the residual stream cannot be rotated: " + std::move(what), std::move(where)};
}

result<shared_rotation> make_rotation(std::int64_t n, std::uint64_t seed) {
  auto made = hadamard_rotation::create(n, seed);
  if (!made)
    return error{
        errc::unsupported,
        "there is no Hadamard matrix of size " + std::to_string(n) + " here: sizes are 2^m times 1, 12, 20, 28 ..",
        "rotation"};
  return std::make_shared<const hadamard_rotation>(*std::move(made));
}

/// Values that are added to each other, scaled by numbers or picked from, hence are in one basis.
class value_classes {
 public:
  explicit value_classes(const graph::graph& g) : parent_(g.values.size()) {
    std::iota(parent_.begin(), parent_.end(), std::uint32_t{0});
    for (const graph::node& n : g.nodes)
      if (joins(n)) {
        join(n.inputs[0], n.outputs[0]);
        if (n.kind == graph::op::add) join(n.inputs[1], n.outputs[0]);
      }
  }
  static bool joins(const graph::node& n) {
    return n.kind == graph::op::add || n.kind == graph::op::scale || n.kind == graph::op::select_outputs;
  }
  [[nodiscard]] std::uint32_t of(graph::value v) const {
    std::uint32_t at = v.index;
    while (parent_[at] != at) at = parent_[at];
    return at;
  }

 private:
  void join(graph::value a, graph::value b) { parent_[of(a)] = of(b); }
  std::vector<std::uint32_t> parent_;
};

class stream_rotation {
 public:
  stream_rotation(const io::archive& file, const model_graph& g, edited_content& content)
      : file_(file), g_(g), content_(content), classes_(g.whole) {}

  result<void> add(std::uint64_t seed) {
    const auto table = std::find_if(g_.whole.nodes.begin(), g_.whole.nodes.end(), [&](const graph::node& n) {
      return n.kind == graph::op::embed && g_.producer(n.inputs[1]).kind == graph::op::token_ids;
    });
    if (table == g_.whole.nodes.end()) return cannot("there is no embedding table", "graph");
    stream_ = classes_.of(table->outputs[0]);
    FLYWHEEL_TRY(rotation_, make_rotation(g_.whole.at(table->outputs[0]).cols, seed));
    for (const graph::node& n : g_.whole.nodes) {
      if (graph::is_source(n.kind) || value_classes::joins(n)) continue;
      for (const graph::value v : n.outputs)
        if (classes_.of(v) == stream_) FLYWHEEL_CHECK(add_writer(n));
      for (std::size_t i = 0; i < n.inputs.size(); ++i)
        if (n.inputs[i].valid() && classes_.of(n.inputs[i]) == stream_) FLYWHEEL_CHECK(add_reader(n, i));
    }
    for (const graph::value v : g_.whole.outputs)
      if (classes_.of(v) == stream_) return cannot("it is the model's result", "graph");
    return {};
  }

 private:
  [[nodiscard]] std::string describe(const graph::node& n) const {
    for (const graph::value v : n.inputs)
      if (const graph::weight_info* w = v.valid() ? g_.whole.weight_of(v) : nullptr) return w->name;
    return std::string(to_string(n.kind));
  }

  result<void> add_writer(const graph::node& n) {
    const auto rows = [&](graph::value v) -> result<void> {
      const graph::weight_info* w = g_.whole.weight_of(v);
      if (!w) return cannot("what writes to it is computed", describe(n));
      const bool vector = w->dims.rank() == 1;
      tensor_edit& edit = content_.edits[w->name];
      if (g_.uses_of_tensor(w->name) != 1) return cannot("what writes to it is used elsewhere", w->name);
      if (vector) {
        edit.column_rotation = rotation_;
      } else {
        edit.row_rotation = rotation_;
        edit.row_count = rotation_->size();
      }
      return {};
    };
    switch (n.kind) {
      case graph::op::embed: {
        const graph::weight_info* w = g_.whole.weight_of(n.inputs[0]);
        if (!w) return cannot("what writes to it is computed", describe(n));
        content_.edits[w->name].column_rotation = rotation_;
        return {};
      }
      case graph::op::linear:
        FLYWHEEL_CHECK(rows(n.inputs[1]));
        return n.as<graph::linear_attributes>().biases && n.inputs[2].valid() ? rows(n.inputs[2]) : result<void>{};
      case graph::op::moe_ffn: {
        using input = graph::moe_attributes::input;
        FLYWHEEL_CHECK(rows(n.inputs[input::down]));
        if (!n.inputs[input::down_bias].valid()) return {};
        // [experts, n]: each row is a bias of its own.
        const graph::weight_info* w = g_.whole.weight_of(n.inputs[input::down_bias]);
        if (!w) return cannot("what writes to it is computed", describe(n));
        content_.edits[w->name].column_rotation = rotation_;
        return {};
      }
      default:
        return cannot("it is written by " + std::string(to_string(n.kind)), describe(n));
    }
  }

  result<void> add_reader(const graph::node& n, std::size_t input) {
    if (n.kind == graph::op::rms_norm && input == 0 && n.as<graph::norm_attributes>().group == 0) {
      std::vector<float> weight;
      if (n.inputs.size() > 1 && n.inputs[1].valid()) {
        const graph::weight_info* w = g_.whole.weight_of(n.inputs[1]);
        if (!w || g_.uses_of_tensor(w->name) != 1) return cannot("a norm shares its weight", describe(n));
        FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(file_, w->name));
        FLYWHEEL_TRY(weight, read_floats(file_, *tensor));
        content_.edits[w->name].ones = true;
      }
      if (g_.is_output(n.outputs[0])) return cannot("the model's result is a norm of it", describe(n));
      for (const graph::node* reader : g_.readers(n.outputs[0]))
        FLYWHEEL_CHECK(add_columns(*reader, n.outputs[0], weight));
      return {};
    }
    return add_columns(n, n.inputs[input], {});
  }

  /// The matrices with which a node multiplies x get the norm's weight and the rotation.
  result<void> add_columns(const graph::node& n, graph::value x, const std::vector<float>& weight) {
    using input = graph::moe_attributes::input;
    const auto add = [&](graph::value v) -> result<void> {
      const graph::weight_info* w = g_.whole.weight_of(v);
      if (!w) return cannot("what reads it is computed", describe(n));
      if (is_table(w->name)) {
        // A tied output head.
        if (file_.find(head_name)) return cannot("its table is multiplied with", w->name);
        auto& copy = content_.copies[std::string(head_name)];
        copy.first = w->name;
        copy.second.columns = weight;
        copy.second.column_rotation = rotation_;
        return {};
      }
      tensor_edit& edit = content_.edits[w->name];
      if (edit.column_rotation && edit.columns != weight) return cannot("a matrix reads it in two ways", w->name);
      edit.columns = weight;
      edit.column_rotation = rotation_;
      return {};
    };
    if (n.kind == graph::op::linear && n.inputs[0] == x) return add(n.inputs[1]);
    if (n.kind == graph::op::moe_ffn && n.inputs[input::x] == x && n.inputs[input::router] != x) {
      FLYWHEEL_CHECK(add(n.inputs[input::gate]));
      return add(n.inputs[input::up]);
    }
    return cannot("it is read by " + std::string(to_string(n.kind)), describe(n));
  }

  [[nodiscard]] bool is_table(const std::string& name) const {
    return std::any_of(g_.whole.nodes.begin(), g_.whole.nodes.end(), [&](const graph::node& n) {
      const graph::weight_info* w = n.kind == graph::op::embed ? g_.whole.weight_of(n.inputs[0]) : nullptr;
      return w && w->name == name;
    });
  }

  const io::archive& file_;
  const model_graph& g_;
  edited_content& content_;
  value_classes classes_;
  std::uint32_t stream_ = 0;
  shared_rotation rotation_;
};

result<void> rotate_heads(const io::archive& file, edited_content& content, std::uint64_t seed) {
  FLYWHEEL_TRY(const std::vector<channel_link> links, find_channel_links(file));
  for (const channel_link& link : links) {
    if (link.of != channel_link::kind::values) continue;
    FLYWHEEL_TRY(const shared_rotation rotation, make_rotation(link.head_dim, seed));
    for (const channel_link::part& part : link.made_by) {
      FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(file, part.tensor));
      tensor_edit& edit = content.edits[part.tensor];
      if (tensor->dims.rank() == 1) {
        edit.column_rotation = rotation;
      } else {
        edit.row_rotation = rotation;
        edit.first_row = part.first;
        edit.row_count = link.channels;
      }
    }
    for (const std::string& reader : link.read_by) content.edits[reader].column_rotation = rotation;
  }
  return {};
}

/// Refuses models that are there for their hidden states.
result<void> check_pooling(const io::metadata& meta) {
  constexpr std::int64_t by_logits = 4;  // GGUF's number for rerankers
  FLYWHEEL_TRY(const std::string_view architecture, meta.string("general.architecture"));
  const std::string key = std::string(architecture) + ".pooling_type";
  if (!meta.contains(key)) return {};
  FLYWHEEL_TRY(const std::int64_t type, meta.integer(key));
  if (type != by_logits) return cannot("the model's embeddings would be in another basis than the original's", key);
  return {};
}

}  // namespace

result<io::archive> rotate(const io::archive& model, const rotation_options& options) {
  return detail::guarded([&]() -> result<io::archive> {
    io::archive rotated = model;
    if (options.stream) {
      FLYWHEEL_CHECK(check_pooling(model.metadata()));
      edited_content content;
      content.mark = detail::rotated_key;
      FLYWHEEL_TRY(const model_graph g, model_graph::read(model));
      FLYWHEEL_CHECK(stream_rotation(model, g, content).add(options.seed));
      FLYWHEEL_TRY(rotated, edit_archive(model, std::move(content)));
    }
    if (options.heads) {
      edited_content content;
      FLYWHEEL_CHECK(rotate_heads(rotated, content, options.seed + 1));
      if (!content.edits.empty()) content.mark = detail::rotated_heads_key;
      FLYWHEEL_TRY(rotated, edit_archive(rotated, std::move(content)));
    }
    return rotated;
  });
}

}  // namespace flywheel::inline v0::quant
