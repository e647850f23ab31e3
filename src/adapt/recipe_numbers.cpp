#include "src/adapt/recipe_numbers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::adapt {
namespace {

constexpr double practically_unbounded = 1e3;

std::string layer_filter(std::int64_t layer) { return "blk." + std::to_string(layer) + "."; }

const std::optional<model_reference>& base_of_slice(const recipe& r, const recipe::slice& s) {
  return s.base ? s.base : r.modules[0].base ? r.modules[0].base : r.base;
}

}  // namespace

const merge::method* recipe_numbers::method_of(std::size_t slice) const {
  const recipe::module& m = what_.modules[0];
  const recipe::slice& s = m.slices[slice];
  return find_merge_method(!s.method.empty() ? s.method : !m.method.empty() ? m.method : what_.method);
}

/// One slice of all layers: groups of layers, and the rest. Else: slices.
void recipe_numbers::cut(std::int64_t layers, const evolve_options& options) {
  const std::vector<recipe::slice>& slices = what_.modules[0].slices;
  const auto add = [&](std::size_t slice, std::int64_t first, std::int64_t last) {
    const auto filters = [&](std::initializer_list<const char*> kinds) {
      part p{slice, {}};
      for (const char* kind : kinds) {
        if (first == last) p.filters.emplace_back(kind);
        for (std::int64_t l = first; l < last; ++l) p.filters.push_back(layer_filter(l) + kind);
      }
      return p;
    };
    if (options.parts) {
      parts_.push_back(filters({"attn_norm", "ffn_norm"}));
      parts_.push_back(filters({"ffn_"}));
    }
    if (first != last) parts_.push_back(filters({""}));
  };
  if (slices.size() == 1 && slices[0].sources[0].last == 0) {
    const auto groups = std::min<std::int64_t>(static_cast<std::int64_t>(options.groups), layers);
    for (std::int64_t g = 0; g < groups; ++g) add(0, g * layers / groups, (g + 1) * layers / groups);
    parts_.push_back({0, {}});
    last_layer_ = {layers};
    return;
  }
  std::int64_t behind = 0;
  for (std::size_t s = 0; s < slices.size(); ++s) {
    add(s, 0, 0);
    parts_.push_back({s, {}});
    behind += slices[s].sources[0].last - slices[s].sources[0].first;
    last_layer_.push_back(behind);
  }
}

/// By the tensor's name in the result. (Filters speak of the inputs' names: the same where layers are named.)
std::size_t recipe_numbers::part_of(const std::string& tensor) const {
  std::size_t slice = tensor.starts_with("output") ? last_layer_.size() - 1 : 0;
  if (tensor.starts_with("blk.")) {
    const std::int64_t layer = std::strtoll(tensor.c_str() + 4, nullptr, 10);
    while (slice + 1 < last_layer_.size() && layer >= last_layer_[slice]) ++slice;
  }
  std::size_t at = 0;
  for (; at < parts_.size(); ++at) {
    if (parts_[at].slice != slice) continue;
    const auto& filters = parts_[at].filters;
    if (filters.empty() || std::any_of(filters.begin(), filters.end(),
                                       [&](const std::string& f) { return tensor.find(f) != std::string::npos; }))
      break;
  }
  return at;
}

/// The row's bounds; a bound that nobody gives is 1 from the recipe's own numbers.
result<void> recipe_numbers::bound(row& of, const evolved_parameter& wanted, double least, double most) {
  const auto own = std::span(start_).subspan(of.first, of.parts);
  const auto [low, high] = std::minmax_element(own.begin(), own.end());
  const auto between = [&](double given, double method, double fallback) {
    return !std::isnan(given) ? given : std::abs(method) < practically_unbounded ? method : fallback;
  };
  const double lower = between(wanted.least, least, *low - 1), upper = between(wanted.most, most, *high + 1);
  if (!(lower < upper) || lower < least || upper > most)
    return error{errc::invalid_argument,
                 "bounds must be in order, and between those of the method: " + std::to_string(least) + " to " +
                     std::to_string(most),
                 wanted.name};
  for (std::size_t i = of.first; i < of.first + of.parts; ++i) {
    start_[i] = std::clamp(start_[i], lower, upper);
    lower_.push_back(lower);
    upper_.push_back(upper);
  }
  return {};
}

result<void> recipe_numbers::add_slice(std::size_t slice, const merge_plan& plan,
                                       std::span<const evolved_parameter> wanted) {
  const recipe::slice& said = what_.modules[0].slices[slice];
  const merge::method& how = *method_of(slice);
  const auto base = base_of_slice(what_, said);
  std::vector<std::size_t> inputs;  // of the plan's steps: which sources
  for (std::size_t s = 0; s < said.sources.size(); ++s)
    if (!(base && said.sources[s].model == *base) || how.base_counts || how.base == merge::base_use::none)
      inputs.push_back(s);
  const auto in_slice = [&](const part& p) { return p.slice == slice; };
  const auto first_part =
      static_cast<std::size_t>(std::find_if(parts_.begin(), parts_.end(), in_slice) - parts_.begin());
  const auto n_parts = static_cast<std::size_t>(std::count_if(parts_.begin(), parts_.end(), in_slice));
  std::size_t place = 0;  // in a step's parameters
  for (const merge::parameter_info& p : how.parameters) {
    const std::size_t n = p.per_model ? inputs.size() : 1, here = place;
    place += n;
    const auto asked = std::find_if(wanted.begin(), wanted.end(), [&](const auto& w) { return w.name == p.name; });
    if (asked == wanted.end() || p.ignored) continue;
    for (std::size_t i = 0; i < n; ++i) {
      row made{slice,        p.per_model ? inputs[i] : 0, std::string(p.name), p.per_model, first_part, n_parts,
               start_.size()};
      std::vector<double> sums(n_parts), counts(n_parts);
      for (const merge_step& step : plan.steps) {
        const std::size_t at = step.how == &how ? part_of(step.name) - first_part : n_parts;
        if (at >= n_parts || step.parameters.size() <= here + i) continue;
        sums[at] += step.parameters[here + i];
        counts[at] += 1;
      }
      for (std::size_t k = 0; k < n_parts; ++k) start_.push_back(counts[k] > 0 ? sums[k] / counts[k] : p.fallback);
      FLYWHEEL_CHECK(bound(made, *asked, p.least, p.most));
      rows_.push_back(std::move(made));
    }
  }
  return {};
}

result<recipe_numbers> recipe_numbers::find(const recipe& what, const merge_plan& plan, const evolve_options& options) {
  if (options.groups == 0) return error{errc::invalid_argument, "must be at least 1", "groups"};
  recipe_numbers made(what);
  FLYWHEEL_TRY(const auto architecture, plan.metadata.string("general.architecture"));
  FLYWHEEL_TRY(const std::int64_t layers, plan.metadata.integer(std::string(architecture) + ".block_count"));
  made.cut(layers, options);
  std::vector<evolved_parameter> wanted = options.parameters;
  if (wanted.empty())
    for (const char* usual : {"weight", "density", "t", "select_topk"}) wanted.emplace_back().name = usual;
  const std::size_t slices = what.modules[0].slices.size();
  for (const evolved_parameter& p : options.parameters) {
    bool known = false;
    for (std::size_t s = 0; s < slices; ++s)
      for (const merge::parameter_info& has : made.method_of(s)->parameters) known |= has.name == p.name;
    if (!known) return error{errc::invalid_argument, "no method of the recipe has such a parameter", p.name};
  }
  for (std::size_t s = 0; s < slices; ++s) FLYWHEEL_CHECK(made.add_slice(s, plan, wanted));
  if (made.start_.empty())
    return error{errc::invalid_argument, "the recipe's methods have no numbers to search over", "parameters"};
  return made;
}

recipe recipe_numbers::with(std::span<const double> numbers) const {
  recipe made = what_;
  for (const row& r : rows_) {
    recipe::slice& slice = made.modules[0].slices[r.slice];
    setting value;
    bool equal = true;
    for (std::size_t k = 0; k < r.parts; ++k) {
      equal &= numbers[r.first + k] == numbers[r.first];
      const std::vector<std::string>& filters = parts_[r.first_part + k].filters;
      for (const std::string& filter : filters) value.choices.push_back({filter, {numbers[r.first + k]}, {}});
      if (filters.empty()) value.choices.push_back({{}, {numbers[r.first + k]}, {}});
    }
    if (equal) value.choices = {{{}, {numbers[r.first]}, {}}};
    if (r.per_model) {
      slice.sources[r.source].parameters[r.name] = std::move(value);
    } else if (made.modules[0].slices.size() == 1) {
      made.parameters[r.name] = std::move(value);
      made.modules[0].parameters.erase(r.name);
      slice.parameters.erase(r.name);
    } else {
      slice.parameters[r.name] = std::move(value);
    }
  }
  made.text = to_yaml(made);
  return made;
}

}  // namespace flywheel::inline v0::adapt
