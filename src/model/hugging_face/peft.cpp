#include "src/model/hugging_face/peft.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/model/hugging_face/names.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

using io::detail::in_quotes;

constexpr std::size_t max_patterns = 65536, max_pattern_bytes = 4096;

/// What changes the mathematics in a way that no adapter of this library's form can say.
void expect_plain(const config& c) {
  c.expect_text("peft_type", {"LORA"});
  c.expect_text("bias", {"none"});
  for (const char* key : {"fan_in_fan_out", "lora_bias", "use_qalora"}) c.expect_off(key);
  for (const char* key : {"layer_replication", "trainable_token_indices", "target_parameters",
                          "alora_invocation_tokens", "megatron_config"})
    if (const json& value = c.find(key); !value.is_null() && !value.empty())
      c.fail(errc::unsupported, key, "unsupported");
  // These take something out of the base's weights when they begin.
  const std::string_view begin = text_of(c.find("init_lora_weights"));
  for (const std::string_view kind : {"pissa", "olora", "corda"})
    if (begin.starts_with(kind))
      c.fail(
          errc::unsupported, "init_lora_weights",
          "unsupported: the adapter belongs to a changed base; save it with path_initial_model_for_weight_conversion");
}

/// Whether it has no sign of a regular expression but dots.
bool is_literal(std::string_view text) noexcept { return text.find_first_of("\\^$*+?()[]{}|") == text.npos; }

/// `ending` is the last parts of the name.
bool ends_with_parts(std::string_view name, std::string_view ending) noexcept {
  return name.ends_with(ending) && (name.size() == ending.size() || name[name.size() - ending.size() - 1] == '.');
}

}  // namespace

result<std::vector<lora_config::pattern>> lora_config::read_patterns(const json& all, std::string_view key,
                                                                     const std::vector<std::string>& order,
                                                                     const std::string& where) {
  const error wrong{errc::malformed, "the value must be an object that gives numbers to endings of names",
                    where + ": key '" + std::string(key) + "'"};
  if (!all.is_null() && !all.is_object()) return wrong;
  if (all.size() > max_patterns) return wrong;
  std::vector<pattern> patterns;
  for (const std::string& text : order) {
    const json& value = member(all, text);
    if (!value.is_number() || !std::isfinite(value.get<double>()) || text.size() > max_pattern_bytes) return wrong;
    pattern p{text, {}, value.get<double>()};
    if (!is_literal(text)) {
      auto compiled = text::regex::compile("^(?:.*\\.)?(?:" + text + ")$");
      if (!compiled && compiled.error().code == errc::out_of_memory) return std::move(compiled).error();
      if (!compiled) return error{errc::malformed, in_quotes(text) + " is not a valid regular expression", wrong.where};
      p.expression = *std::move(compiled);
    }
    patterns.push_back(std::move(p));
  }
  return patterns;
}

result<double> lora_config::find(const std::vector<pattern>& patterns, std::string_view module, double otherwise,
                                 const std::string& where) {
  std::optional<text::regex_matcher> matcher;
  for (const pattern& p : patterns) {
    if (!p.expression) {
      if (ends_with_parts(module, p.text)) return p.value;
      continue;
    }
    if (!matcher) matcher.emplace();
    auto found = matcher->search(*p.expression, module, 0);
    if (!found) return error{errc::malformed, "the pattern " + in_quotes(p.text) + " takes too long to match", where};
    if (found->matched) return p.value;
  }
  return otherwise;
}

result<lora_config> lora_config::read(const folder& from) {
  // The first pattern that fits counts, and only the text itself has an order.
  std::map<std::string, std::vector<std::string>, std::less<>> order;
  std::string group;
  FLYWHEEL_TRY(json document,
               from.read_json(adapter_config_file, [&](int depth, json::parse_event_t event, json& parsed) {
                 if (event != json::parse_event_t::key) return true;
                 if (depth == 1) group = parsed.get<std::string>();
                 if (depth == 2 && group.ends_with("_pattern")) order[group].push_back(parsed.get<std::string>());
                 return true;
               }));
  const std::string where = from.where(adapter_config_file);
  if (document.is_null())
    return error{errc::not_found, "the folder has no adapter_config.json, so it is not a PEFT adapter",
                 from.path().string()};
  if (!document.is_object()) return error{errc::malformed, "the file must hold a JSON object", where};
  const config c(std::move(document), where);
  if (!c.has("peft_type")) return error{errc::malformed, "the key is missing", where + ": key 'peft_type'"};
  expect_plain(c);

  lora_config read;
  read.where_ = where;
  // The defaults are PEFT's.
  read.rank_ = c.count("r").value_or(8);
  read.alpha_ = c.number("lora_alpha").value_or(8);
  read.rank_stabilized_ = c.flag("use_rslora", false);
  static_cast<void>(c.flag("use_dora", false));  // the tensors say it
  if (read.rank_ < 1) c.fail(errc::malformed, "r", "the number must not be 0");
  if (!std::isfinite(static_cast<float>(read.alpha_))) c.fail(errc::malformed, "lora_alpha", "the number is too large");
  const json& saved = c.find("modules_to_save");
  for (const json& module : saved)
    if (module.is_string() && saved.is_array()) read.saved_.emplace_back(text_of(module));
  if (!saved.is_null() && read.saved_.size() != saved.size())
    c.fail(errc::malformed, "modules_to_save", "the value must be a list of names");
  if (c.fault()) return *c.fault();
  FLYWHEEL_TRY(read.ranks_, read_patterns(c.find("rank_pattern"), "rank_pattern", order["rank_pattern"], where));
  FLYWHEEL_TRY(read.alphas_, read_patterns(c.find("alpha_pattern"), "alpha_pattern", order["alpha_pattern"], where));
  return read;
}

double lora_config::alpha() const noexcept {
  if (alpha_ == 0) return rank_;  // GGUF's 0 is a factor of 1
  return rank_stabilized_ ? alpha_ * std::sqrt(rank_) : alpha_;
}

result<double> lora_config::factor(std::string_view module, std::int64_t rank) const {
  FLYWHEEL_TRY(const double said, find(ranks_, module, rank_, where_));
  if (said != static_cast<double>(rank))
    return error{errc::malformed,
                 "the rank of module " + in_quotes(module) + " is " + std::to_string(rank) +
                     " in the weights, but not in r or rank_pattern of the configuration",
                 where_};
  FLYWHEEL_TRY(const double alpha, find(alphas_, module, alpha_, where_));
  return alpha / (rank_stabilized_ ? std::sqrt(said) : said);
}

bool lora_config::saves(std::string_view module) const noexcept {
  return std::ranges::any_of(saved_, [&](const std::string& ending) { return module.ends_with(ending); });
}

namespace {

/// What PEFT calls the parts of a change.
enum class part : std::uint8_t { a, b, embedding_a, embedding_b, magnitude, count };
constexpr std::pair<std::string_view, part> part_names[] = {{"lora_A", part::a},
                                                            {"lora_B", part::b},
                                                            {"lora_embedding_A", part::embedding_a},
                                                            {"lora_embedding_B", part::embedding_b},
                                                            {"lora_magnitude_vector", part::magnitude}};

struct module_parts {
  const io::tensor_info* parts[static_cast<std::size_t>(part::count)] = {};
  [[nodiscard]] const io::tensor_info*& operator[](part p) noexcept { return parts[static_cast<std::size_t>(p)]; }
  [[nodiscard]] const io::tensor_info* operator[](part p) const noexcept { return parts[static_cast<std::size_t>(p)]; }
};

class adapter_translator {
 public:
  adapter_translator(const folder& from, const io::archive& base, const lora_config& lora, const layout& names)
      : from_(from), base_(base), lora_(lora), names_(names), model_(from, names.config(), names.family()) {}

  result<io::archive> translate() {
    for (const io::tensor_info& tensor : from_.weights().tensors()) FLYWHEEL_CHECK(sort_in(tensor));
    for (const auto& [module, parts] : modules_) FLYWHEEL_CHECK(add_module(module, parts));
    io::metadata& meta = model_.metadata;
    meta.set("general.type", std::string("adapter"));
    meta.set("general.architecture", std::string(names_.family().architecture));
    meta.set("general.name", from_.path().filename().string());
    meta.set("adapter.type", std::string("lora"));
    meta.set("adapter.lora.alpha", static_cast<float>(lora_.alpha()));
    return model_.finish();
  }

 private:
  [[nodiscard]] error unsupported(const io::tensor_info& tensor, std::string message) const {
    error e = model_.wrong(tensor, std::move(message));
    e.code = errc::unsupported;
    return e;
  }

  result<void> sort_in(const io::tensor_info& tensor) {
    std::string name = tensor.name;
    if (constexpr std::string_view peft = "base_model.model."; name.starts_with(peft)) name.erase(0, peft.size());
    if (is_foreign(name)) return {};
    const auto frozen = [&](std::string_view part) { return name.find(part) != name.npos; };
    if (frozen(".base_layer.") || frozen(".original_module.")) return {};  // the base's, which some versions save too
    if (const std::size_t at = name.find(".lora_"); at != name.npos) return sort_in_factor(tensor, name, at + 1);

    // "classifier.modules_to_save.default.weight" is "classifier.weight".
    bool saved = false;
    if (constexpr std::string_view mark = ".modules_to_save."; name.find(mark) != name.npos) {
      saved = true;
      const std::size_t at = name.find(mark);
      std::string rest = name.substr(at + mark.size());
      if (const std::size_t dot = rest.find('.'); dot != rest.npos) rest.erase(0, dot + 1);  // the adapter's name
      name = name.substr(0, at + 1) + rest;
    }
    return add_whole(tensor, name, saved || lora_.saves(name.substr(0, name.rfind('.'))));
  }

  /// "MODULE.lora_A.default.weight", in which the last two may be missing.
  result<void> sort_in_factor(const io::tensor_info& tensor, const std::string& name, std::size_t at) {
    const std::string module = name.substr(0, at - 1);
    const std::string_view kind = std::string_view(name).substr(at), key = kind.substr(0, kind.find('.'));
    std::string_view rest = kind.substr(key.size());
    if (rest.ends_with(".bias")) return unsupported(tensor, "unsupported: factors with a bias (lora_bias)");
    if (rest.ends_with(".weight")) rest.remove_suffix(std::string_view(".weight").size());
    for (const auto& [known, p] : part_names) {
      if (key != known || std::ranges::count(rest, '.') > 1) continue;
      const io::tensor_info*& place = modules_[module][p];
      if (place != nullptr)
        return unsupported(
            tensor, "unsupported: a file with several adapters; " + in_quotes(place->name) + " is of the same module");
      place = &tensor;
      return {};
    }
    return unsupported(tensor, "it is not known what this tensor of an adapter is");
  }

  result<void> add_whole(const io::tensor_info& tensor, const std::string& name, bool saved) {
    const std::string plain = plain_name(name);
    name_match m = find_row(names_.family(), plain);
    if (plain == "lm_head.weight") m.names.first = detail::output_head;
    const bool vocabulary = m.names.first == detail::output_head || m.names.first == detail::token_embeddings;
    if (!saved && vocabulary) {
      // PEFT saves these beside adapters of them; what was not trained is the base's.
      const io::tensor_info* to = base_.find(m.names.first);
      if (to == nullptr) to = base_.find(detail::token_embeddings);
      if (to != nullptr && to->dims == tensor.dims) return {};
    } else if (!saved) {
      return unsupported(tensor, "this is no factor, and modules_to_save of the configuration does not name it");
    }
    if (m.names.first.empty()) return no_module(tensor);
    return m.row != nullptr && m.row->how != nullptr && !vocabulary ? m.row->how(model_, tensor, m.names)
                                                                    : model_.add(m.names.first, tensor);
  }

  [[nodiscard]] error no_module(const io::tensor_info& tensor) const {
    return unsupported(tensor, "models of architecture " + in_quotes(names_.family().architecture) +
                                   " have no such module that could be changed");
  }

  result<void> add_module(const std::string& module, const module_parts& parts) {
    const bool embedding = parts[part::embedding_a] != nullptr || parts[part::embedding_b] != nullptr;
    const io::tensor_info* const a = parts[embedding ? part::embedding_a : part::a];
    const io::tensor_info* const b = parts[embedding ? part::embedding_b : part::b];
    const io::tensor_info* const magnitude = parts[part::magnitude];
    if (a == nullptr || b == nullptr) {
      const io::tensor_info& have = a != nullptr ? *a : b != nullptr ? *b : *magnitude;
      return model_.wrong(have, std::string("the factor ") + (a == nullptr ? "A" : "B") + " of this module is missing");
    }
    if (embedding && (parts[part::a] != nullptr || parts[part::b] != nullptr))
      return model_.wrong(*a, "the module has factors of a product, too");
    for (const io::tensor_info* t : {a, b})
      if (t->dims.rank() != 2 || t->dims.elements() == 0)
        return unsupported(*t, "unsupported: a factor of shape " + t->dims.to_string() + ", which is no matrix");
    const std::int64_t rank = a->dims[0], n = b->dims[0], k = a->dims[1];
    if (b->dims[1] != rank)
      return model_.wrong(*b, "its shape " + b->dims.to_string() + " does not fit the rank of " + in_quotes(a->name) +
                                  ", which is " + std::to_string(rank));
    FLYWHEEL_TRY(placed_tensor to, place(*a, module, embedding ? shape{k, n} : shape{n, k}));
    FLYWHEEL_TRY(const double factor, lora_.factor(module, rank));
    gathered_rows up{.from = {*b}, .cols = rank, .row = to.row};
    // Where alpha / rank is not this module's factor, B makes up for it.
    const double rest = factor * static_cast<double>(rank) / static_cast<double>(static_cast<float>(lora_.alpha()));
    const bool folded = std::abs(rest - 1) > 1e-6;
    if (!std::isfinite(static_cast<float>(rest))) return model_.wrong(*b, "the factor of this module is too large");
    if (folded) up.value = [x = static_cast<float>(rest)](float value) { return value * x; };

    const auto named = [&](std::string_view part) { return to.name + std::string(part); };
    if (to.expert >= 0) {
      if (folded || magnitude != nullptr)
        return unsupported(*a, "unsupported: DoRA, or a rank or alpha of its own, for one expert");
      FLYWHEEL_CHECK(model_.add_expert(named(detail::lora_a), to.expert, *a));
      return model_.add_expert(named(detail::lora_b), to.expert, *b);
    }
    if (embedding) {
      FLYWHEEL_CHECK(model_.check_weight(*a));
      io::tensor_info flipped = *a;
      flipped.dims = {1, rank, k};
      model_.add_computed(named(detail::lora_a), a->type, {k, rank}, rank,
                          make_transposed(from_.weights(), {std::move(flipped), 0, 1, k}));
    } else {
      FLYWHEEL_CHECK(model_.add(named(detail::lora_a), a->dims, {.from = {*a}, .cols = k, .column = to.column}));
    }
    FLYWHEEL_CHECK(model_.add(named(detail::lora_b), b->dims, std::move(up)));
    if (magnitude == nullptr) return {};
    if (magnitude->dims.elements() != n)
      return model_.wrong(*magnitude, "it has " + std::to_string(magnitude->dims.elements()) +
                                          " values, but the factor B " + std::to_string(n) + " rows");
    return model_.add(named(detail::lora_magnitude), shape{n}, {.from = {*magnitude}, .cols = 1, .row = to.row});
  }

  /// Where the weight of a module goes. `dims` are the weight's.
  result<placed_tensor> place(const io::tensor_info& tensor, const std::string& module, const shape& dims) const {
    const std::string plain = plain_name(module + ".weight");
    const bool flipped = tensor.name.find("lora_embedding_A") != std::string::npos;
    if (plain == "lm_head.weight" && !flipped) return placed_tensor{std::string(detail::output_head), dims};
    if (find_row(names_.family(), plain).row == nullptr) return no_module(tensor);
    FLYWHEEL_TRY(std::vector<placed_tensor> placed, names_.place(plain, dims));
    if (placed.size() != 1 || placed[0].dims != dims || placed[0].value ||
        flipped != (placed[0].name == detail::token_embeddings))
      return no_module(tensor);
    return std::move(placed[0]);
  }

  const folder& from_;
  const io::archive& base_;
  const lora_config& lora_;
  const layout& names_;
  model_builder model_;
  std::map<std::string, module_parts> modules_;
};

}  // namespace

result<io::archive> translate_adapter(const folder& from, const io::archive& base) {
  FLYWHEEL_TRY(const lora_config lora, lora_config::read(from));
  FLYWHEEL_TRY(const layout names, layout::of(base.metadata(), base.path().string()));
  return adapter_translator(from, base, lora, names).translate();
}

}  // namespace flywheel::inline v0::hugging_face
