// A recipe as YAML.
#include <charconv>
#include <nlohmann/json.hpp>
#include <system_error>

#include "flywheel/adapt/evolve.hpp"
#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::adapt {
namespace {

/// A JSON string is a YAML one.
std::string yaml_text(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// As few digits as say exactly this number.
std::string yaml_number(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

class recipe_writer {
 public:
  recipe_writer(const std::filesystem::path& from, const std::filesystem::path& to) : from_(from), to_(to) {}

  std::string text(const recipe& r) {
    if (!r.name.empty()) line(0, "name: " + yaml_text(r.name));
    if (!r.method.empty()) line(0, "merge_method: " + r.method);
    if (r.base) line(0, "base_model: " + reference(*r.base));
    if (r.modules.size() == 1 && is_plain(r.modules[0])) {
      slices(0, r.modules[0]);
    } else {
      line(0, "modules:");
      for (const recipe::module& m : r.modules) {
        line(1, yaml_text(m.name) + ":");
        if (!m.method.empty()) line(2, "merge_method: " + m.method);
        if (m.base) line(2, "base_model: " + reference(*m.base));
        slices(2, m);
        parameters(2, m.parameters);
      }
    }
    parameters(0, r.parameters);
    if (r.type) line(0, "dtype: " + std::string(to_string(*r.type)));
    tokenizer(r);
    if (!r.chat_template.empty()) line(0, "chat_template: " + yaml_text(r.chat_template));
    if (r.seed != 0) line(0, "seed: " + std::to_string(r.seed));
    return std::move(out_);
  }

 private:
  void line(int depth, const std::string& text) {
    out_.append(static_cast<std::size_t>(2 * depth), ' ');
    out_ += text + "\n";
  }

  /// What the keys of a document say as well as those of a module.
  static bool is_plain(const recipe::module& m) { return m.method.empty() && !m.base && m.parameters.empty(); }
  static bool is_all_layers(const recipe::slice& s) {
    for (const recipe::source& one : s.sources)
      if (one.first != 0 || one.last != 0) return false;
    return s.method.empty() && !s.base && s.parameters.empty();
  }

  [[nodiscard]] std::string place(const std::string& path) const {
    const std::filesystem::path given(path), inside = from_ / given;
    std::error_code failed;
    if ((from_.empty() && to_.empty()) || given.is_absolute() || !std::filesystem::exists(inside, failed)) return path;
    const std::filesystem::path moved = std::filesystem::proximate(inside, to_.empty() ? "." : to_, failed);
    return failed ? path : moved.generic_string();
  }
  [[nodiscard]] std::string reference(const model_reference& model) const {
    const std::string path = place(model.path);
    if (path.find('+') == std::string::npos)
      return yaml_text(model.adapter.empty() ? path : path + "+" + place(model.adapter));
    if (model.adapter.empty()) return "{path: " + yaml_text(path) + "}";
    return "{model: {path: " + yaml_text(path) + "}, lora: {path: " + yaml_text(place(model.adapter)) + "}}";
  }

  void parameters(int depth, const settings& all) {
    if (all.empty()) return;
    line(depth, "parameters:");
    for (const auto& [name, value] : all) {
      if (value.choices.size() == 1 && value.choices[0].filter.empty()) {
        line(depth + 1, name + ": " + values(value.choices[0]));
        continue;
      }
      line(depth + 1, name + ":");
      for (const setting::filtered& choice : value.choices)
        line(depth + 2, "- {" + (choice.filter.empty() ? "" : "filter: " + yaml_text(choice.filter) + ", ") +
                            "value: " + values(choice) + "}");
    }
  }
  static std::string values(const setting::filtered& choice) {
    if (!choice.word.empty()) return yaml_text(choice.word);
    if (choice.values.size() == 1) return yaml_number(choice.values[0]);
    std::string text;
    for (const double v : choice.values) text += (text.empty() ? "[" : ", ") + yaml_number(v);
    return text + "]";
  }

  void slices(int depth, const recipe::module& m) {
    if (m.slices.size() == 1 && is_all_layers(m.slices[0])) {
      line(depth, "models:");
      sources(depth + 1, m.slices[0], false);
      return;
    }
    line(depth, "slices:");
    for (const recipe::slice& s : m.slices) {
      line(depth + 1, "- sources:");
      sources(depth + 3, s, true);
      if (!s.method.empty()) line(depth + 2, "merge_method: " + s.method);
      if (s.base) line(depth + 2, "base_model: " + reference(*s.base));
      parameters(depth + 2, s.parameters);
    }
  }
  void sources(int depth, const recipe::slice& s, bool ranges) {
    for (const recipe::source& one : s.sources) {
      line(depth, "- model: " + reference(one.model));
      if (ranges) line(depth + 1, "layer_range: [" + std::to_string(one.first) + ", " + std::to_string(one.last) + "]");
      parameters(depth + 1, one.parameters);
    }
  }

  void tokenizer(const recipe& r) {
    if (r.tokenizer_source.empty()) return;
    const bool a_model = r.tokenizer_source != "base" && r.tokenizer_source != "union";
    line(0, "tokenizer:");
    line(1, "source: " + (a_model ? reference({r.tokenizer_source, {}}) : r.tokenizer_source));
    if (r.pad_to_multiple_of != 1) line(1, "pad_to_multiple_of: " + std::to_string(r.pad_to_multiple_of));
    if (r.tokens.empty()) return;
    line(1, "tokens:");
    for (const recipe::token_source& t : r.tokens) {
      std::string how = t.force ? "force: true" : "force: false";
      if (t.zero)
        how += ", source: {kind: zero}";
      else if (t.from && (t.id || !t.other.empty()))
        how += ", source: {kind: model_token, model: " + reference(*t.from) +
               (t.id ? ", token_id: " + std::to_string(*t.id) : ", token: " + yaml_text(t.other)) + "}";
      else if (t.from)
        how += ", source: " + reference(*t.from);
      line(2, yaml_text(t.token) + ": {" + how + "}");
    }
  }

  const std::filesystem::path &from_, &to_;
  std::string out_;
};

}  // namespace

std::string to_yaml(const recipe& what, const std::filesystem::path& from, const std::filesystem::path& to) {
  return recipe_writer(from, to).text(what);
}

}  // namespace flywheel::inline v0::adapt
