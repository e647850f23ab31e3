// A recipe, resolved against its models: for every tensor of the result a method, inputs, and numbers.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/adapt/recipe.hpp"
#include "flywheel/detail/edit_distance.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/model/open.hpp"
#include "src/adapt/vocabularies.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/names.hpp"
#include "src/model/tensor_types.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using io::detail::in_quotes;

constexpr std::string_view head_name = "output.weight", embedding_name = "token_embd.weight", layer_prefix = "blk.";

/// Numbers that follow from the architecture and are not trained.
bool is_constant(std::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" || name == "rope_factors_short.weight";
}

/// Tensors behind the layers come from the last slice, the others from the first.
bool is_behind_layers(std::string_view name) { return name.starts_with("output") || name.starts_with("cls"); }

/// "blk.12.attn_q.weight" as 12 and "attn_q.weight"; nothing for tensors outside layers.
std::optional<std::pair<std::int64_t, std::string_view>> layer_of(std::string_view name) {
  if (!name.starts_with(layer_prefix)) return std::nullopt;
  name.remove_prefix(layer_prefix.size());
  const std::size_t dot = name.find('.');
  if (dot == 0 || dot == std::string_view::npos || dot > 9) return std::nullopt;
  std::int64_t number = 0;
  for (const char c : name.substr(0, dot)) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + (c - '0');
  }
  return std::pair(number, name.substr(dot + 1));
}

std::string layer_tensor(std::int64_t layer, std::string_view rest) {
  return std::string(layer_prefix) + std::to_string(layer) + "." + std::string(rest);
}

/// What the planner knows of an opened model.
struct planned_model {
  std::int64_t layers = 0;
  std::vector<std::string> outside;                         ///< Tensors outside layers, in file order.
  std::map<std::int64_t, std::vector<std::string>> inside;  ///< Of each layer, without "blk.N.".
  std::map<std::string, dtype, std::less<>> types;          ///< As stored, before vocabularies are aligned.
};

/// A source of a slice with its numbers settled.
struct planned_source {
  std::size_t model = 0;
  std::int64_t first = 0, last = 0;
  const settings* parameters = nullptr;  ///< Null: a base that is no source.
};

struct planned_slice {
  const recipe::slice* said = nullptr;
  const recipe::module* module = nullptr;
  const merge::method* how = nullptr;
  std::vector<planned_source> inputs;
  std::optional<planned_source> base;
  std::int64_t layers = 0;
  /// Of all sources: whose tensors the slice has.
  [[nodiscard]] const planned_source& lead() const { return inputs.empty() ? *base : inputs.front(); }
};

/// Where a value is looked up.
struct value_scope {
  const planned_slice* slice = nullptr;
  std::string hugging_face, gguf;  ///< The tensor's name.
  double t = 0;                    ///< Place in a gradient.
};

class merge_planner {
 public:
  merge_planner(const recipe& what, std::filesystem::path folder) : what_(what), folder_(std::move(folder)) {}

  result<merge_plan> run() {
    if (what_.modules.size() != 1)
      return error{errc::unsupported, "models of several modules cannot be merged: name one", "modules"};
    FLYWHEEL_CHECK(open_models());
    FLYWHEEL_CHECK(find_numbers());
    FLYWHEEL_CHECK(settle_slices());
    FLYWHEEL_CHECK(check_parameter_names());
    FLYWHEEL_CHECK(write_metadata());
    FLYWHEEL_CHECK(align_vocabularies(what_, names_, base_, main_, plan_.models, plan_.metadata));
    FLYWHEEL_CHECK(plan_outside(slices_.front(), false));
    std::int64_t out = 0;
    for (const planned_slice& slice : slices_)
      for (std::int64_t i = 0; i < slice.layers; ++i) FLYWHEEL_CHECK(plan_layer(slice, i, out++));
    FLYWHEEL_CHECK(plan_outside(slices_.back(), true));
    write_file_type();
    plan_.seed = what_.seed;
    return std::move(plan_);
  }

 private:
  [[nodiscard]] std::string file_of(std::size_t model) const { return plan_.models[model].path().string(); }

  [[nodiscard]] std::filesystem::path place_of(const std::string& path) const {
    const std::filesystem::path given(path), inside = folder_ / given;
    std::error_code ignored;
    return given.is_relative() && !folder_.empty() && std::filesystem::exists(inside, ignored) ? inside : given;
  }

  result<void> open_models() {
    names_ = what_.models();
    for (const model_reference& name : names_) {
      auto opened = open_model_archive(place_of(name.path));
      if (!opened) {
        error e = std::move(opened).error();
        if (e.code == errc::not_found) e.message += "; models are files or folders here, none is downloaded";
        return e;
      }
      if (!opened->metadata().contains("general.architecture"))
        return error{errc::unsupported, "this is no model: it has no metadata that says which",
                     opened->path().string()};
      if (!name.adapter.empty()) {
        FLYWHEEL_TRY(io::archive adapter, open_adapter_archive(place_of(name.adapter), *opened));
        const scaled_adapter one{std::move(adapter)};
        FLYWHEEL_TRY(*opened, apply_adapters(*opened, {&one, 1}));
      }
      plan_.models.push_back(*std::move(opened));
    }
    return {};
  }

  result<void> find_numbers() {
    FLYWHEEL_TRY(const auto first, plan_.models[0].metadata().string("general.architecture"));
    architecture_ = first;
    for (std::size_t m = 0; m < plan_.models.size(); ++m) {
      const io::archive& model = plan_.models[m];
      FLYWHEEL_TRY(const auto architecture, model.metadata().string("general.architecture"));
      if (architecture != architecture_)
        return error{errc::invalid_argument,
                     "models of different architectures cannot be merged: " + file_of(0) + " is " +
                         in_quotes(architecture_) + ", " + file_of(m) + " is " + in_quotes(architecture),
                     "general.architecture"};
      planned_model known;
      FLYWHEEL_TRY(known.layers, model.metadata().integer(architecture_ + ".block_count"));
      for (const io::tensor_info& tensor : model.tensors()) {
        known.types.emplace(tensor.name, tensor.type);
        if (const auto layer = layer_of(tensor.name))
          known.inside[layer->first].emplace_back(layer->second);
        else
          known.outside.push_back(tensor.name);
        hugging_face_names_.insert(hugging_face::hugging_face_name(architecture_, tensor.name));
      }
      known_.push_back(std::move(known));
    }
    return {};
  }

  [[nodiscard]] std::size_t index_of(const model_reference& name) const {
    return static_cast<std::size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
  }

  result<planned_source> settle(const model_reference& name, std::int64_t first, std::int64_t last,
                                const settings* parameters) const {
    planned_source made{index_of(name), first, last, parameters};
    const std::int64_t layers = known_[made.model].layers;
    if (made.last == 0) made.last = layers;
    if (made.last > layers)
      return error{errc::invalid_argument,
                   "layer_range [" + std::to_string(made.first) + ", " + std::to_string(made.last) +
                       "] is beyond the " + std::to_string(layers) + " layers of the model",
                   file_of(made.model)};
    return made;
  }

  result<planned_slice> settle_slice(const recipe::module& module, const recipe::slice& said) const {
    planned_slice made;
    made.said = &said;
    made.module = &module;
    const std::string& method = !said.method.empty()     ? said.method
                                : !module.method.empty() ? module.method
                                                         : what_.method;
    made.how = find_merge_method(method);
    if (made.how == nullptr) return unknown_method(method);
    const std::optional<model_reference>& base = said.base ? said.base : module.base ? module.base : what_.base;
    for (const recipe::source& source : said.sources) {
      FLYWHEEL_TRY(planned_source one, settle(source.model, source.first, source.last, &source.parameters));
      const bool is_base = base && source.model == *base;
      if (is_base && !made.base) made.base = one;
      if (!is_base || made.how->base_counts || made.how->base == merge::base_use::none) made.inputs.push_back(one);
    }
    if (base && !made.base) {
      // It has the layers of the first source, where it has as many.
      const planned_source& like = made.inputs.front();
      FLYWHEEL_TRY(made.base, settle(*base, like.first, like.last, nullptr));
    }
    if (made.how->base == merge::base_use::none) made.base.reset();
    if (made.how->base == merge::base_use::required && !made.base)
      return error{errc::invalid_argument, std::string(made.how->name) + " needs a base_model", "base_model"};
    if (made.inputs.size() < made.how->min_models || made.inputs.size() > made.how->max_models)
      return error{errc::invalid_argument, count_message(*made.how, made.inputs.size()), "merge_method"};
    made.layers = made.lead().last - made.lead().first;
    std::vector<planned_source> all = made.inputs;
    if (made.base) all.push_back(*made.base);
    for (const planned_source& one : all)
      if (one.last - one.first != made.layers)
        return error{errc::invalid_argument,
                     "the sources of a slice have different numbers of layers: " + file_of(made.lead().model) + " " +
                         std::to_string(made.layers) + ", " + file_of(one.model) + " " +
                         std::to_string(one.last - one.first),
                     "layer_range"};
    return made;
  }

  static error unknown_method(const std::string& name) {
    std::string message = in_quotes(name) + " is no merge method; there are", near;
    std::size_t least = 4;
    for (const merge::method* known : merge_methods()) {
      message += (known == merge_methods().front() ? " " : ", ") + std::string(known->name);
      const std::size_t d = name.size() > 40 ? 99 : detail::edit_distance(name, known->name);
      if (d < least) least = d, near = known->name;
    }
    if (!near.empty()) message += "; did you mean " + near + "?";
    return error{errc::unsupported, std::move(message), "merge_method"};
  }

  static std::string count_message(const merge::method& how, std::size_t n) {
    std::string takes = how.min_models == how.max_models ? std::to_string(how.min_models)
                        : how.max_models > 1000          ? "at least " + std::to_string(how.min_models)
                        : how.min_models <= 1
                            ? "at most " + std::to_string(how.max_models)
                            : std::to_string(how.min_models) + " to " + std::to_string(how.max_models);
    takes += takes.ends_with(" 1") || takes == "1" ? " model" : " models";
    if (how.base != merge::base_use::none && !how.base_counts) takes += " beside the base";
    return std::string(how.name) + " takes " + takes + ", but " + std::to_string(n) + (n == 1 ? " is" : " are") +
           " given";
  }

  result<void> settle_slices() {
    const recipe::module& module = what_.modules.front();
    for (const recipe::slice& said : module.slices) {
      FLYWHEEL_TRY(planned_slice made, settle_slice(module, said));
      slices_.push_back(std::move(made));
    }
    const std::optional<model_reference>& base = module.base ? module.base : what_.base;
    if (base) base_ = index_of(*base);
    main_ = base_ ? *base_ : slices_.front().inputs.front().model;
    return {};
  }

  // ---- parameters

  static const merge::parameter_info* find_parameter(const merge::method& how, std::string_view name) {
    const auto found = std::find_if(how.parameters.begin(), how.parameters.end(),
                                    [&](const merge::parameter_info& p) { return p.name == name; });
    return found == how.parameters.end() ? nullptr : &*found;
  }

  /// mergekit's masks of bytes save memory, which is none of a method's numbers; recipes say it of any method.
  static bool is_known(const merge::method& how, std::string_view name) {
    return name == "int8_mask" || find_parameter(how, name) != nullptr;
  }

  static error unknown_parameter(const merge::method& how, const std::string& name) {
    std::string message = std::string(how.name) + " has no parameter " + in_quotes(name);
    message += how.parameters.empty() ? "; it has none" : "; it has";
    for (const merge::parameter_info& p : how.parameters)
      message += (&p == how.parameters.data() ? " " : ", ") + std::string(p.name) + (p.per_model ? " (per model)" : "");
    return error{errc::invalid_argument, std::move(message), "parameters"};
  }

  result<void> check_parameter_names() const {
    for (const planned_slice& slice : slices_) {
      for (const recipe::source& source : slice.said->sources)
        for (const auto& [name, value] : source.parameters) {
          if (!is_known(*slice.how, name)) return unknown_parameter(*slice.how, name);
          if (const merge::parameter_info* p = find_parameter(*slice.how, name); p != nullptr && !p->per_model)
            return error{errc::invalid_argument,
                         in_quotes(name) + " of " + std::string(slice.how->name) +
                             " is no number of a single model: write it under the recipe's own 'parameters'",
                         "parameters of " + source.model.path};
        }
      for (const auto& [name, value] : slice.said->parameters)
        if (!is_known(*slice.how, name)) return unknown_parameter(*slice.how, name);
    }
    for (const settings* all : {&what_.modules.front().parameters, &what_.parameters})
      for (const auto& [name, value] : *all) {
        const bool known = std::any_of(slices_.begin(), slices_.end(),
                                       [&, &key = name](const planned_slice& s) { return is_known(*s.how, key); });
        if (!known) return unknown_parameter(*slices_.front().how, name);
      }
    return {};
  }

  /// Filters are parts of Hugging Face's names, or, where no tensor's has it, of GGUF's.
  bool fits(const std::string& filter, const value_scope& scope) {
    if (filter.empty()) return true;
    const auto [known, is_new] = filter_is_hugging_face_.try_emplace(filter, false);
    if (is_new)
      known->second = std::any_of(hugging_face_names_.begin(), hugging_face_names_.end(),
                                  [&](const std::string& name) { return name.find(filter) != std::string::npos; });
    return (known->second ? scope.hugging_face : scope.gguf).find(filter) != std::string::npos;
  }

  /// The choice of a setting for a tensor; null when no filter fits.
  const setting::filtered* choice(const settings* of, std::string_view name, const value_scope& scope) {
    if (of == nullptr) return nullptr;
    const auto found = of->find(name);
    if (found == of->end()) return nullptr;
    for (const setting::filtered& one : found->second.choices)
      if (fits(one.filter, scope)) return &one;
    return nullptr;
  }

  static double at_place(const std::vector<double>& gradient, double t) {
    const double scaled = t * static_cast<double>(gradient.size() - 1);
    const auto i = static_cast<std::size_t>(scaled);
    const std::size_t next = std::min(gradient.size() - 1, i + 1);
    const double part = scaled - static_cast<double>(i);
    return (1 - part) * gradient[i] + part * gradient[next];
  }

  /// Source before slice before module before recipe.
  result<double> value(const merge::parameter_info& p, const planned_source* source, const value_scope& scope) {
    const planned_slice& slice = *scope.slice;
    const auto where = [&] { return (source == nullptr ? std::string() : file_of(source->model) + ": ") + scope.gguf; };
    for (const settings* of : {source == nullptr ? nullptr : source->parameters, &slice.said->parameters,
                               &slice.module->parameters, &what_.parameters}) {
      const setting::filtered* found = choice(of, p.name, scope);
      if (found == nullptr) continue;
      double number = 0;
      if (!found->word.empty()) {
        const auto word = std::find(p.words.begin(), p.words.end(), found->word);
        if (word == p.words.end()) return wrong_word(slice, p, found->word, where());
        number = static_cast<double>(word - p.words.begin());
      } else {
        number = at_place(found->values, scope.t);
      }
      if (!(number >= p.least && number <= p.most))
        return error{errc::invalid_argument,
                     "parameter '" + std::string(p.name) + "' of " + std::string(slice.how->name) + " is " +
                         number_text(number) + ", and must be from " + number_text(p.least) + " to " +
                         number_text(p.most),
                     where()};
      return number;
    }
    if (p.required)
      return error{errc::invalid_argument,
                   std::string(slice.how->name) + " needs a value of '" + std::string(p.name) + "' (" +
                       std::string(p.what) + ")",
                   where()};
    return p.fallback;
  }

  static std::string number_text(double x) {
    std::string text = std::to_string(x);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
    return text;
  }

  static error wrong_word(const planned_slice& slice, const merge::parameter_info& p, const std::string& word,
                          std::string where) {
    std::string message = "parameter '" + std::string(p.name) + "' of " + std::string(slice.how->name) + " is " +
                          in_quotes(word) + ", which is " + (p.words.empty() ? "no number" : "none of");
    for (const std::string_view known : p.words)
      message += (known == p.words.front() ? " " : ", ") + std::string(known);
    return error{errc::invalid_argument, std::move(message), std::move(where)};
  }

  result<std::vector<double>> values(const planned_slice& slice, const value_scope& out,
                                     const std::vector<std::string>& inputs) {
    std::vector<double> all;
    for (const merge::parameter_info& p : slice.how->parameters) {
      if (!p.per_model) {
        FLYWHEEL_TRY(all.emplace_back(), value(p, nullptr, out));
        continue;
      }
      for (std::size_t i = 0; i < slice.inputs.size(); ++i) {
        value_scope scope = out;
        scope.gguf = inputs[i];
        scope.hugging_face = hugging_face::hugging_face_name(architecture_, inputs[i]);
        FLYWHEEL_TRY(all.emplace_back(), value(p, &slice.inputs[i], scope));
      }
    }
    return all;
  }

  // ---- tensors

  /// The tensor of this name in a model; a head that is tied to the embeddings is those.
  result<merge_step::input> input_of(std::size_t model, const std::string& name, std::size_t lead) const {
    if (plan_.models[model].find(name) != nullptr) return merge_step::input{model, name};
    if (name == head_name && plan_.models[model].find(embedding_name) != nullptr)
      return merge_step::input{model, std::string(embedding_name)};
    return error{errc::invalid_argument, file_of(model) + " has no such tensor, " + file_of(lead) + " has", name};
  }

  [[nodiscard]] const io::tensor_info& info_of(const merge_step::input& input) const {
    return *plan_.models[input.model].find(input.tensor);
  }

  /// The type of a tensor of the result that is stored as `stored` in the first model.
  [[nodiscard]] dtype type_of(const std::string& name, const shape& dims, dtype stored) const {
    dtype type = stored;
    if (what_.type) type = detail::stays_f32(name, dims.rank()) ? dtype::f32 : *what_.type;
    const dtype_info* facts = info(type);
    const bool whole = facts != nullptr && dims.cols() % facts->block_elements == 0;
    return whole && formats::find_encoder(type) != nullptr ? type : dtype::f16;
  }

  /// `name_in(source)`: what the tensor is called in a source.
  template <class NameIn>
  result<void> plan_tensor(const planned_slice& slice, const std::string& name, double t, NameIn name_in) {
    merge_step step;
    step.name = name;
    const std::size_t lead = slice.lead().model;
    std::vector<std::string> names;
    for (const planned_source& source : slice.inputs) {
      names.push_back(name_in(source));
      FLYWHEEL_TRY(step.inputs.emplace_back(), input_of(source.model, names.back(), lead));
      if (is_constant(name)) break;
    }
    if (slice.base) {
      FLYWHEEL_TRY(step.base, input_of(slice.base->model, name_in(*slice.base), lead));
      if (step.inputs.empty()) step.inputs.push_back(*step.base);
    }
    const merge_step::input& first = step.base ? *step.base : step.inputs.front();
    step.dims = info_of(first).dims;
    const auto& types = known_[step.inputs.front().model].types;
    step.type = type_of(name, step.dims, types.find(step.inputs.front().tensor)->second);
    if (is_constant(name)) {
      step.base.reset();
      step.dims = info_of(step.inputs.front()).dims;
      plan_.steps.push_back(std::move(step));
      return {};
    }
    for (const merge_step::input& input : step.inputs)
      if (info_of(input).dims != step.dims)
        return error{errc::invalid_argument,
                     "the shapes differ: " + step.dims.to_string() + " in " + file_of(first.model) + ", " +
                         info_of(input).dims.to_string() + " in " + file_of(input.model),
                     name};
    const value_scope scope{&slice, hugging_face::hugging_face_name(architecture_, name), name, t};
    FLYWHEEL_TRY(step.parameters, values(slice, scope, names));
    step.how = slice.how;
    const bool plain = std::equal(step.parameters.begin(), step.parameters.end(), slice.how->parameters.begin(),
                                  slice.how->parameters.end(),
                                  [](double v, const merge::parameter_info& p) { return v == p.fallback; });
    if (slice.how->name == "passthrough" && plain) step.how = nullptr;
    FLYWHEEL_CHECK(check_together(step));
    plan_.steps.push_back(std::move(step));
    return {};
  }

  /// Numbers that are each right, but not together.
  [[nodiscard]] result<void> check_together(const merge_step& step) const {
    if (step.how == nullptr || step.how->refuses == nullptr) return {};
    const merge::task task{step.name,          step.dims.elements(),  step.dims.cols(),
                           step.inputs.size(), step.base.has_value(), what_.seed,
                           step.parameters};
    if (const std::string_view why = step.how->refuses(task); !why.empty())
      return error{errc::invalid_argument, std::string(step.how->name) + ": " + std::string(why), step.name};
    return {};
  }

  /// A tensor that another source has and the first has not.
  template <class Has>
  result<void> check_extra(std::size_t other, std::size_t lead, const std::vector<std::string>& theirs, Has has,
                           const std::string& prefix) const {
    for (const std::string& name : theirs)
      if (!has(name) && !is_constant(name))
        return error{errc::invalid_argument, file_of(lead) + " has no such tensor, " + file_of(other) + " has",
                     prefix + name};
    return {};
  }

  [[nodiscard]] static std::vector<planned_source> all_of(const planned_slice& slice) {
    std::vector<planned_source> all = slice.inputs;
    if (slice.base) all.push_back(*slice.base);
    return all;
  }

  result<void> plan_outside(const planned_slice& slice, bool behind) {
    std::vector<std::string> names;
    const std::size_t lead = slice.lead().model;
    for (const std::string& name : known_[lead].outside)
      if (is_behind_layers(name) == behind) names.push_back(name);
    const std::vector<planned_source> all = all_of(slice);
    // A head of its own in one model makes one in the result.
    const auto has_head = [&](const planned_source& s) { return plan_.models[s.model].find(head_name) != nullptr; };
    if (behind && std::find(names.begin(), names.end(), head_name) == names.end() &&
        (std::any_of(all.begin(), all.end(), has_head) || heads_part()))
      names.emplace_back(head_name);
    for (const planned_source& other : all) {
      std::vector<std::string> theirs;
      for (const std::string& name : known_[other.model].outside)
        if (is_behind_layers(name) == behind) theirs.push_back(name);
      FLYWHEEL_CHECK(check_extra(
          other.model, lead, theirs,
          [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); }, ""));
    }
    for (const std::string& name : names)
      FLYWHEEL_CHECK(plan_tensor(slice, name, 0, [&](const planned_source&) { return name; }));
    return {};
  }

  /// Tied embeddings of the first slice are not the head of the last one, where those have other sources.
  [[nodiscard]] bool heads_part() const {
    const auto models = [](const planned_slice& s) {
      std::vector<std::size_t> all;
      for (const planned_source& one : all_of(s)) all.push_back(one.model);
      return all;
    };
    return models(slices_.front()) != models(slices_.back());
  }

  result<void> plan_layer(const planned_slice& slice, std::int64_t i, std::int64_t out) {
    const double t = slice.layers > 1 ? static_cast<double>(i) / static_cast<double>(slice.layers - 1) : 1;
    const planned_source& lead = slice.lead();
    const auto tensors_of = [&](const planned_source& s) -> const std::vector<std::string>& {
      static const std::vector<std::string> none;
      const auto found = known_[s.model].inside.find(s.first + i);
      return found == known_[s.model].inside.end() ? none : found->second;
    };
    const std::vector<std::string>& names = tensors_of(lead);
    for (const planned_source& other : all_of(slice))
      FLYWHEEL_CHECK(check_extra(
          other.model, lead.model, tensors_of(other),
          [&](const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); },
          layer_tensor(other.first + i, "")));
    for (const std::string& name : names)
      FLYWHEEL_CHECK(plan_tensor(slice, layer_tensor(out, name), t,
                                 [&](const planned_source& s) { return layer_tensor(s.first + i, name); }));
    return {};
  }

  // ---- metadata

  result<void> write_metadata() {
    io::metadata& meta = plan_.metadata;
    meta = plan_.models[main_].metadata();
    std::vector<std::string> gone = {"flywheel.lineage"};
    for (const io::entry& e : meta.entries())
      if (e.key.starts_with("split.") || e.key.starts_with("quantize.imatrix.")) gone.push_back(e.key);
    for (const std::string& key : gone) meta.erase(key);
    if (!what_.name.empty()) meta.set("general.name", what_.name);
    std::int64_t layers = 0;
    for (const planned_slice& slice : slices_) layers += slice.layers;
    meta.set(architecture_ + ".block_count", static_cast<std::uint32_t>(layers));
    for (const io::entry& e : plan_.models[main_].metadata().entries())
      if (e.key.starts_with(architecture_ + ".") && !e.key.starts_with(architecture_ + ".rope."))
        FLYWHEEL_CHECK(stack_numbers(e.key));
    set_chat_template();
    return {};
  }

  /// A list with a number per layer, in the order of the result's layers.
  result<void> stack_numbers(const std::string& key) {
    const auto visit = [&](const auto& own) -> result<void> {
      using list = std::decay_t<decltype(own)>;
      if constexpr (requires {
                      own.begin();
                      own.size();
                    } && !std::is_same_v<list, std::string>) {
        if (static_cast<std::int64_t>(own.size()) != known_[main_].layers) return {};
        list stacked;
        for (const planned_slice& slice : slices_) {
          const planned_source& from = slice.base && slice.base->model == main_ ? *slice.base : slice.lead();
          const io::value* found = plan_.models[from.model].metadata().find(key);
          const auto* theirs = found == nullptr ? nullptr : std::get_if<list>(found);
          if (theirs == nullptr || static_cast<std::int64_t>(theirs->size()) != known_[from.model].layers)
            return error{errc::invalid_argument,
                         "this list of numbers per layer is not one in " + file_of(from.model) + ", as it is in " +
                             file_of(main_),
                         key};
          stacked.insert(stacked.end(), theirs->begin() + from.first, theirs->begin() + from.last);
        }
        plan_.metadata.set(key, std::move(stacked));
      }
      return {};
    };
    return std::visit(visit, *plan_.models[main_].metadata().find(key));
  }

  void set_chat_template() {
    const std::string key = "tokenizer.chat_template";
    if (what_.chat_template.empty()) return;
    if (what_.chat_template == "chatml") {
      plan_.metadata.set(key, std::string("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
                                          "message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if "
                                          "add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"));
    } else if (what_.chat_template == "auto") {
      std::map<std::string, int> votes;
      std::string most;
      for (const io::archive& model : plan_.models)
        if (const auto own = model.metadata().string(key)) {
          const int n = ++votes[std::string(*own)];
          if (most.empty() || n > votes[most]) most = *own;
        }
      if (!most.empty()) plan_.metadata.set(key, most);
    } else {
      plan_.metadata.set(key, what_.chat_template);
    }
  }

  /// general.file_type: what most matrices are.
  void write_file_type() {
    std::map<dtype, std::uint64_t> elements;
    for (const merge_step& step : plan_.steps)
      if (step.dims.rank() > 1) elements[step.type] += static_cast<std::uint64_t>(step.dims.elements());
    const auto most = std::max_element(elements.begin(), elements.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    plan_.metadata.erase("general.file_type");
    if (most == elements.end()) return;
    if (const auto number = detail::file_type_of(most->first)) plan_.metadata.set("general.file_type", *number);
  }

  const recipe& what_;
  std::filesystem::path folder_;
  std::vector<model_reference> names_;  // [models]
  std::vector<planned_model> known_;    // [models]
  std::string architecture_;
  std::vector<planned_slice> slices_;
  std::optional<std::size_t> base_;
  std::size_t main_ = 0;  ///< The base, else the first model.
  std::set<std::string> hugging_face_names_;
  std::map<std::string, bool> filter_is_hugging_face_;
  merge_plan plan_;
};

}  // namespace

result<merge_plan> plan_merge(const recipe& what, const std::filesystem::path& folder) {
  return detail::guarded([&] { return merge_planner(what, folder).run(); });
}

}  // namespace flywheel::inline v0::adapt
