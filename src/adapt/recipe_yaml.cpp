// mergekit's YAML. A document becomes a small tree of its own first, in which aliases and merge keys are expanded and
// counted: after that nothing can be endless.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>

#include "flywheel/adapt/experts.hpp"
#include "flywheel/adapt/recipe.hpp"
#include "flywheel/core/mapped_file.hpp"
#include "flywheel/detail/edit_distance.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/detail/utf8.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::adapt {
namespace {

constexpr std::size_t max_recipe_bytes = 256U << 10, max_recipe_depth = 32, max_recipe_nodes = 50'000;

/// What is wrong, on its way to parse(). Nothing of it leaves this file.
struct recipe_fault {
  errc code;
  int line;  ///< From 0; negative: none.
  std::string message;
};

struct yaml_value {
  enum class kind : std::uint8_t { null, scalar, list, map };
  kind what = kind::null;
  int line = 0;
  std::string text;
  std::vector<yaml_value> items;                         ///< Of a list.
  std::vector<std::pair<std::string, yaml_value>> keys;  ///< Of a map.

  // Defined where the type of `keys` is complete.
  yaml_value();
  yaml_value(const yaml_value&);
  yaml_value(yaml_value&&) noexcept;
  yaml_value& operator=(const yaml_value&);
  yaml_value& operator=(yaml_value&&) noexcept;
  ~yaml_value();

  [[nodiscard]] const yaml_value* find(std::string_view key) const {
    for (const auto& [name, value] : keys)
      if (name == key) return &value;
    return nullptr;
  }
};

yaml_value::yaml_value() = default;
yaml_value::yaml_value(const yaml_value&) = default;
yaml_value::yaml_value(yaml_value&&) noexcept = default;
yaml_value& yaml_value::operator=(const yaml_value&) = default;
yaml_value& yaml_value::operator=(yaml_value&&) noexcept = default;
yaml_value::~yaml_value() = default;

[[noreturn]] void wrong(const yaml_value& at, std::string message) {
  throw recipe_fault{errc::malformed, at.line, std::move(message)};
}

class tree_builder {
 public:
  yaml_value build(const YAML::Node& node) {
    const int line = node.Mark().line;
    const auto refuse = [&](const char* message) { throw recipe_fault{errc::malformed, line, message}; };
    if (std::any_of(path_.begin(), path_.end(), [&](const YAML::Node& outer) { return outer.is(node); }))
      refuse("an anchor contains itself");
    if (path_.size() >= max_recipe_depth) refuse("nested too deeply");
    if (++nodes_ > max_recipe_nodes) refuse("the document and what its aliases stand for are too large");
    yaml_value made;
    made.line = line;
    path_.push_back(node);
    if (node.IsScalar()) {
      made.what = yaml_value::kind::scalar;
      made.text = node.Scalar();
      const bool quoted = node.Tag() == "!";
      if (!quoted && (made.text == "null" || made.text == "~" || made.text.empty())) made.what = yaml_value::kind::null;
    } else if (node.IsSequence()) {
      made.what = yaml_value::kind::list;
      for (const YAML::Node& item : node) made.items.push_back(build(item));
    } else if (node.IsMap()) {
      made.what = yaml_value::kind::map;
      std::vector<yaml_value> merged;
      for (const auto& pair : node) {
        if (!pair.first.IsScalar()) refuse("a key is no text");
        std::string key = pair.first.Scalar();
        yaml_value value = build(pair.second);
        if (key == "<<") {
          merged.push_back(std::move(value));
          continue;
        }
        value.line = std::max(value.line, pair.first.Mark().line);
        if (made.find(key) != nullptr)
          throw recipe_fault{errc::malformed, pair.first.Mark().line,
                             "the key " + quoted_name(key) + " is there twice"};
        made.keys.emplace_back(std::move(key), std::move(value));
      }
      for (const yaml_value& from : merged) merge(made, from);
    }
    path_.pop_back();
    return made;
  }

  static std::string quoted_name(std::string_view name) { return io::detail::in_quotes(name); }

 private:
  /// The merge key: what the map does not say itself.
  static void merge(yaml_value& into, const yaml_value& from) {
    for (const yaml_value& one : from.items) merge(into, one);
    for (const auto& [key, value] : from.keys)
      if (into.find(key) == nullptr) into.keys.emplace_back(key, value);
  }

  std::vector<YAML::Node> path_;
  std::size_t nodes_ = 0;
};

std::string quoted_name(std::string_view name) { return io::detail::in_quotes(name); }

/// A map, each of whose keys must be asked for.
class yaml_map {
 public:
  yaml_map(const yaml_value& map, std::string what) : map_(map), what_(std::move(what)) {
    if (map.what != yaml_value::kind::map) wrong(map, what_ + " must be a map of keys and values");
  }
  /// Null when the key is not there, or says nothing.
  const yaml_value* find(std::string_view key) {
    known_.push_back(key);
    const yaml_value* found = map_.find(key);
    return found == nullptr || found->what == yaml_value::kind::null ? nullptr : found;
  }
  const yaml_value& require(std::string_view key) {
    const yaml_value* found = find(key);
    if (found == nullptr) wrong(map_, what_ + " needs the key '" + std::string(key) + "'");
    return *found;
  }
  /// Error: unsupported, for keys that nothing asked for.
  void finish() const {
    for (const auto& [key, value] : map_.keys) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      std::string message = what_ + " has no key " + quoted_name(key);
      const std::string_view near = key.size() > 40 ? std::string_view() : nearest(key);
      if (!near.empty()) message += "; did you mean '" + std::string(near) + "'?";
      throw recipe_fault{errc::unsupported, value.line, std::move(message)};
    }
  }

 private:
  [[nodiscard]] std::string_view nearest(std::string_view key) const {
    std::string_view best;
    std::size_t least = 3;
    for (const std::string_view known : known_)
      if (const std::size_t d = detail::edit_distance(key, known); d < least) best = known, least = d;
    return best;
  }
  const yaml_value& map_;
  std::string what_;
  std::vector<std::string_view> known_;
};

const std::string& text_of(const yaml_value& v, std::string_view key) {
  if (v.what != yaml_value::kind::scalar) wrong(v, "'" + std::string(key) + "' must be a text");
  return v.text;
}

/// YAML 1.1's words, as mergekit's reader has them.
std::optional<bool> truth_of(std::string_view text) {
  for (const std::string_view yes : {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
    if (text == yes) return true;
  for (const std::string_view no : {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
    if (text == no) return false;
  return std::nullopt;
}

double number_of(const yaml_value& v, const std::string& key) {
  if (v.what == yaml_value::kind::scalar) {
    if (const auto truth = truth_of(v.text)) return *truth ? 1 : 0;
    std::string_view text = v.text;
    if (text.starts_with('+')) text.remove_prefix(1);
    double number = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failure == std::errc() && end == text.data() + text.size() && !text.empty() && std::isfinite(number))
      return number;
  }
  wrong(v, quoted_name(key) + (v.what == yaml_value::kind::scalar ? ": " + quoted_name(v.text) + " is" : " is") +
               " no number; a value is a number, a list of numbers, or a list of {filter, value}");
}

std::int64_t integer_of(const yaml_value& v, const std::string& key, std::int64_t least) {
  std::int64_t number = 0;
  const std::string& text = text_of(v, key);
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size() || number < least)
    wrong(v, "'" + key + "' must be a whole number from " + std::to_string(least) + " on");
  return number;
}

std::vector<double> numbers_of(const yaml_value& v, const std::string& key) {
  if (v.what != yaml_value::kind::list) return {number_of(v, key)};
  std::vector<double> numbers;
  for (const yaml_value& item : v.items) numbers.push_back(number_of(item, key));
  if (numbers.empty()) wrong(v, quoted_name(key) + " is an empty list");
  return numbers;
}

/// Numbers, or the word that some parameters take.
void read_values(const yaml_value& v, const std::string& key, setting::filtered& into) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  const bool word = v.what == yaml_value::kind::scalar && !v.text.empty() && v.text[0] >= 'a' && v.text[0] <= 'z' &&
                    std::all_of(v.text.begin(), v.text.end(), letter) && !truth_of(v.text);
  if (word)
    into.word = v.text;
  else
    into.values = numbers_of(v, key);
}

setting::filtered choice_of(const yaml_value& v, const std::string& key) {
  yaml_map map(v, "a value of " + quoted_name(key) + " that is not a number");
  setting::filtered made;
  if (const yaml_value* filter = map.find("filter")) made.filter = text_of(*filter, "filter");
  if (made.filter == "*") made.filter.clear();
  read_values(map.require("value"), key, made);
  map.finish();
  return made;
}

setting setting_of(const yaml_value& v, const std::string& key) {
  setting made;
  const bool filters = v.what == yaml_value::kind::list &&
                       std::any_of(v.items.begin(), v.items.end(),
                                   [](const yaml_value& item) { return item.what == yaml_value::kind::map; });
  if (filters)
    for (const yaml_value& item : v.items) made.choices.push_back(choice_of(item, key));
  else if (v.what == yaml_value::kind::map)
    made.choices.push_back(choice_of(v, key));
  else
    read_values(v, key, made.choices.emplace_back());
  return made;
}

settings settings_of(yaml_map& map) {
  settings made;
  const yaml_value* all = map.find("parameters");
  if (all == nullptr) return made;
  if (all->what != yaml_value::kind::map) wrong(*all, "'parameters' must be a map of names and values");
  for (const auto& [name, value] : all->keys)
    if (value.what != yaml_value::kind::null) made.emplace(name, setting_of(value, name));
  return made;
}

/// A path, or {path, revision}.
std::string path_of(const yaml_value& v, const std::string& key) {
  if (v.what == yaml_value::kind::scalar) return v.text;
  yaml_map map(v, "'" + key + "'");
  const std::string path = text_of(map.require("path"), "path");
  if (const yaml_value* revision = map.find("revision"))
    throw recipe_fault{errc::unsupported, revision->line, "revisions are not known here: name a file or folder"};
  map.finish();
  return path;
}

model_reference reference_of(const yaml_value& v, const std::string& key) {
  model_reference made;
  if (v.what == yaml_value::kind::scalar) {
    const std::size_t plus = v.text.find('+');
    made.path = v.text.substr(0, plus);
    if (plus != std::string::npos) made.adapter = v.text.substr(plus + 1);
    if (made.adapter.find('+') != std::string::npos)
      wrong(v, quoted_name(v.text) + " has more than one '+'; write a model as PATH or PATH+ADAPTER");
    if (plus != std::string::npos && made.adapter.empty())
      wrong(v, quoted_name(v.text) + " names no adapter behind '+'");
  } else {
    if (v.find("path") != nullptr) return {path_of(v, key), {}};
    yaml_map map(v, "'" + key + "'");
    made.path = path_of(map.require("model"), "model");
    if (const yaml_value* lora = map.find("lora")) made.adapter = path_of(*lora, "lora");
    if (const yaml_value* other = map.find("override_architecture"))
      throw recipe_fault{errc::unsupported, other->line, "'override_architecture' is not supported"};
    map.finish();
  }
  if (made.path.empty()) wrong(v, "'" + key + "' is empty");
  return made;
}

std::optional<model_reference> base_of(yaml_map& map) {
  const yaml_value* base = map.find("base_model");
  if (base == nullptr) return std::nullopt;
  return reference_of(*base, "base_model");
}

std::string method_of(yaml_map& map) {
  const yaml_value* method = map.find("merge_method");
  return method == nullptr ? std::string() : text_of(*method, "merge_method");
}

recipe::source source_of(const yaml_value& v, bool needs_range) {
  yaml_map map(v, needs_range ? "a source of a slice" : "an entry of models");
  recipe::source made;
  made.model = reference_of(map.require("model"), "model");
  if (needs_range) {
    const yaml_value& range = map.require("layer_range");
    if (range.what != yaml_value::kind::list || range.items.size() != 2)
      wrong(range, "'layer_range' must be two whole numbers, [first, behind the last]");
    made.first = integer_of(range.items[0], "layer_range", 0);
    made.last = integer_of(range.items[1], "layer_range", 0);
    if (made.first >= made.last)
      wrong(range, "'layer_range' [" + std::to_string(made.first) + ", " + std::to_string(made.last) +
                       "] has no layers: the second number is one behind the last layer");
  }
  made.parameters = settings_of(map);
  map.finish();
  return made;
}

const std::vector<yaml_value>& items_of(const yaml_value& v, const std::string& key) {
  if (v.what != yaml_value::kind::list || v.items.empty()) wrong(v, "'" + key + "' must be a list with entries");
  return v.items;
}

recipe::slice slice_of(const yaml_value& v) {
  yaml_map map(v, "a slice");
  recipe::slice made;
  for (const yaml_value& source : items_of(map.require("sources"), "sources"))
    made.sources.push_back(source_of(source, true));
  made.method = method_of(map);
  made.base = base_of(map);
  made.parameters = settings_of(map);
  map.find("residual_weight");  // part of the format, without a meaning
  map.finish();
  return made;
}

/// The slices that `models` or `slices` say.
std::vector<recipe::slice> slices_of(const yaml_value* models, const yaml_value* slices) {
  std::vector<recipe::slice> made;
  if (models != nullptr) {
    recipe::slice all;
    for (const yaml_value& model : items_of(*models, "models")) all.sources.push_back(source_of(model, false));
    made.push_back(std::move(all));
  } else {
    for (const yaml_value& slice : items_of(*slices, "slices")) made.push_back(slice_of(slice));
  }
  return made;
}

recipe::module module_of(const yaml_value& v, const std::string& name) {
  yaml_map map(v, "the module " + quoted_name(name));
  recipe::module made;
  made.name = name;
  const yaml_value *models = map.find("models"), *slices = map.find("slices");
  if ((models == nullptr) == (slices == nullptr)) wrong(v, "a module needs one of 'models' and 'slices'");
  made.slices = slices_of(models, slices);
  made.method = method_of(map);
  made.base = base_of(map);
  made.parameters = settings_of(map);
  map.finish();
  return made;
}

dtype type_of(const yaml_value& v, const std::string& key) {
  std::string_view name = text_of(v, key);
  if (name.starts_with("torch.")) name.remove_prefix(6);
  if (name == "float16" || name == "half") return dtype::f16;
  if (name == "bfloat16") return dtype::bf16;
  if (name == "float32" || name == "float" || name == "float64") return dtype::f32;  // arithmetic is f32 anyway
  if (const dtype_info* known = find_dtype(name)) return known->type;
  wrong(v, "'" + key + "': " + quoted_name(name) + " is no type of tensors; take float16, bfloat16, float32 or q8_0");
}

recipe::token_source token_of(const yaml_value& v, const std::string& token) {
  yaml_map map(v, "the token " + quoted_name(token));
  recipe::token_source made;
  made.token = token;
  if (const yaml_value* force = map.find("force")) made.force = number_of(*force, "force") != 0;
  if (const yaml_value* source = map.find("source")) {
    const yaml_value* kind = source->find("kind");
    if (kind == nullptr) {
      made.from = reference_of(*source, "source");
    } else {
      yaml_map from(*source, "'source'");
      const std::string& name = text_of(from.require("kind"), "kind");
      made.zero = name == "zero";
      if (name == "model_token") {
        made.from = reference_of(from.require("model"), "model");
        if (const yaml_value* other = from.find("token")) made.other = text_of(*other, "token");
        if (const yaml_value* id = from.find("token_id")) made.id = integer_of(*id, "token_id", 0);
        if (made.other.empty() == !made.id) wrong(*source, "'source' needs one of 'token' and 'token_id'");
      } else if (!made.zero) {
        wrong(*kind, "'kind' must be model_token or zero");
      }
      from.finish();
    }
  }
  map.finish();
  return made;
}

void read_tokenizer(yaml_map& document, recipe& made) {
  const yaml_value *old = document.find("tokenizer_source"), *tokenizer = document.find("tokenizer");
  if (old != nullptr && tokenizer != nullptr) wrong(*old, "give 'tokenizer' or 'tokenizer_source', not both");
  if (old != nullptr) made.tokenizer_source = reference_of(*old, "tokenizer_source").path;
  if (tokenizer == nullptr) return;
  yaml_map map(*tokenizer, "'tokenizer'");
  made.tokenizer_source = "union";
  if (const yaml_value* source = map.find("source")) made.tokenizer_source = reference_of(*source, "source").path;
  if (const yaml_value* pad = map.find("pad_to_multiple_of")) {
    made.pad_to_multiple_of = integer_of(*pad, "pad_to_multiple_of", 1);
    if (made.pad_to_multiple_of > 65536) wrong(*pad, "'pad_to_multiple_of' is larger than 65536");
  }
  if (const yaml_value* tokens = map.find("tokens")) {
    if (tokens->what != yaml_value::kind::map) wrong(*tokens, "'tokens' must be a map of tokens");
    for (const auto& [token, how] : tokens->keys) made.tokens.push_back(token_of(how, token));
  }
  map.finish();
}

recipe recipe_of(const yaml_value& document) {
  yaml_map map(document, "a recipe");
  recipe made;
  const yaml_value *models = map.find("models"), *slices = map.find("slices"), *modules = map.find("modules");
  if ((models != nullptr) + (slices != nullptr) + (modules != nullptr) != 1)
    wrong(document, "exactly one of 'models', 'slices' and 'modules' must be there");
  made.method = method_of(map);
  made.base = base_of(map);
  made.parameters = settings_of(map);
  if (modules != nullptr) {
    if (modules->what != yaml_value::kind::map || modules->keys.empty())
      wrong(*modules, "'modules' must be a map of names and modules");
    for (const auto& [name, module] : modules->keys) made.modules.push_back(module_of(module, name));
  } else {
    made.modules.push_back({"default", slices_of(models, slices), {}, {}, {}});
  }
  for (const recipe::module& module : made.modules)
    for (const recipe::slice& slice : module.slices)
      if (made.method.empty() && module.method.empty() && slice.method.empty())
        wrong(document, "'merge_method' is missing");
  const yaml_value *type = map.find("dtype"), *out_type = map.find("out_dtype");
  if (type != nullptr) made.type = type_of(*type, "dtype");
  if (out_type != nullptr) made.type = type_of(*out_type, "out_dtype");
  read_tokenizer(map, made);
  if (const yaml_value* chat = map.find("chat_template")) {
    made.chat_template = text_of(*chat, "chat_template");
    if (made.chat_template != "auto" && made.chat_template != "chatml" &&
        made.chat_template.find("{%") == std::string::npos && made.chat_template.find("{{") == std::string::npos)
      throw recipe_fault{errc::unsupported, chat->line,
                         "'chat_template' must be auto, chatml or the text of a template"};
  }
  if (const yaml_value* name = map.find("name")) made.name = text_of(*name, "name");
  if (const yaml_value* seed = map.find("seed")) made.seed = static_cast<std::uint64_t>(integer_of(*seed, "seed", 0));
  map.finish();
  return made;
}

std::vector<std::string> prompts_of(const yaml_value* v, const std::string& key) {
  std::vector<std::string> made;
  if (v == nullptr) return made;
  for (const yaml_value& prompt : items_of(*v, key)) made.push_back(text_of(prompt, key));
  return made;
}

experts_recipe experts_of(const yaml_value& document) {
  yaml_map map(document, "a mixture of experts");
  experts_recipe made;
  made.base = reference_of(map.require("base_model"), "base_model");
  if (const yaml_value* gate = map.find("gate_mode")) {
    const std::string& name = text_of(*gate, "gate_mode");
    if (name == "cheap_embed")
      made.gate = gate_mode::cheap_embed;
    else if (name == "random")
      made.gate = gate_mode::random;
    else if (name != "hidden")
      wrong(*gate, "'gate_mode' must be hidden, cheap_embed or random");
  }
  if (const yaml_value* type = map.find("dtype")) made.type = type_of(*type, "dtype");
  if (const yaml_value* n = map.find("experts_per_token"))
    made.experts_per_token = integer_of(*n, "experts_per_token", 1);
  for (const yaml_value& one : items_of(map.require("experts"), "experts")) {
    yaml_map expert(one, "an expert");
    experts_recipe::expert& e = made.experts.emplace_back();
    e.model = reference_of(expert.require("source_model"), "source_model");
    e.positive_prompts = prompts_of(expert.find("positive_prompts"), "positive_prompts");
    e.negative_prompts = prompts_of(expert.find("negative_prompts"), "negative_prompts");
    expert.finish();
  }
  map.finish();
  return made;
}

/// A document, by `read`; what it throws as an error.
template <class Made>
result<Made> parse_document(std::string_view yaml, const std::string& where, Made (*read)(const yaml_value&)) {
  return detail::guarded([&]() -> result<Made> {
    if (yaml.size() > max_recipe_bytes)
      return error{errc::malformed, "this is no recipe: it has more than 256 KiB", where};
    if (yaml.find('\0') != std::string_view::npos || !detail::is_utf8(yaml))
      return error{errc::malformed, "this is no recipe: it is no text in UTF-8", where};
    const auto failed = [&](errc code, int line, const std::string& message) {
      return error{code, (line < 0 ? std::string() : "line " + std::to_string(line + 1) + ": ") + message, where};
    };
    try {
      Made made = read(tree_builder().build(YAML::Load(std::string(yaml))));
      made.text = yaml;
      return made;
    } catch (const recipe_fault& f) {
      return failed(f.code, f.line, f.message);
    } catch (const YAML::Exception& e) {
      return failed(errc::malformed, e.mark.is_null() ? -1 : e.mark.line, "this is no YAML: " + e.msg);
    }
  });
}

}  // namespace

result<recipe> recipe::parse(std::string_view yaml, const std::string& where) {
  return parse_document(yaml, where, recipe_of);
}

result<experts_recipe> experts_recipe::parse(std::string_view yaml, const std::string& where) {
  return parse_document(yaml, where, experts_of);
}

result<recipe> recipe::read(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<recipe> {
    FLYWHEEL_TRY(const std::shared_ptr<const mapped_file> file, mapped_file::open(path));
    const std::span<const std::byte> bytes = file->bytes();
    return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
  });
}

std::vector<model_reference> recipe::models() const {
  std::vector<model_reference> all;
  const auto add = [&](const std::optional<model_reference>& model) {
    if (model && std::find(all.begin(), all.end(), *model) == all.end()) all.push_back(*model);
  };
  for (const recipe::module& m : modules)
    for (const recipe::slice& s : m.slices)
      for (const recipe::source& from : s.sources) add(from.model);
  add(base);
  for (const recipe::module& m : modules) {
    add(m.base);
    for (const recipe::slice& s : m.slices) add(s.base);
  }
  for (const token_source& t : tokens) add(t.from);
  return all;
}

}  // namespace flywheel::inline v0::adapt
