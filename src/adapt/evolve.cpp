#include "flywheel/adapt/evolve.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "flywheel/adapt/cma_es.hpp"
#include "flywheel/adapt/merge_models.hpp"
#include "flywheel/core/mapped_file.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/evaluate/score.hpp"
#include "flywheel/model/model.hpp"
#include "src/adapt/digest.hpp"
#include "src/adapt/recipe_numbers.hpp"
#include "src/io/output_file.hpp"
#include "src/model/hugging_face/json_file.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using hugging_face::json;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double least_gain = 1e-3;  ///< Nats that the best parent must be better than the base.
constexpr int state_version = 1;

/// Texts cut into windows, and what models are worth on them.
class scorer {
 public:
  scorer(std::span<const scored_text> texts, const evolve_options& options, context ctx)
      : texts_(texts), options_(options), context_(std::move(ctx)) {}

  /// Log-perplexities of all texts.
  result<evaluation> score(const io::archive& file, std::string name) {
    FLYWHEEL_TRY(const model loaded, model::open(file, {context_, {{}, options_.control.stop}}));
    FLYWHEEL_CHECK(cut(loaded));
    evaluation made;
    made.name = std::move(name);
    session_options how;
    how.n_ctx = options_.ctx;
    FLYWHEEL_TRY(session sequence, loaded.new_session(how));
    for (const std::vector<evaluate::window>& text : windows_) {
      FLYWHEEL_TRY(const evaluate::score s, evaluate::score_windows(sequence, text, {{}, options_.control.stop}));
      made.nll.push_back(s.mean_nll().value);
    }
    return made;
  }

  /// A recipe's result.
  result<evaluation> score(const recipe& what, const std::filesystem::path& folder) {
    FLYWHEEL_TRY(const merge_plan plan, plan_merge(what, folder));
    FLYWHEEL_TRY(const io::archive merged, merge_in_memory(plan, {context_, {{}, options_.control.stop}}));
    return score(merged, {});
  }

  /// The base first, if there is one, then every model of the recipe.
  result<std::vector<evaluation>> parents(const recipe& what, const merge_plan& plan) {
    const std::vector<model_reference> names = what.models();
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < names.size(); ++i) order.push_back(i);
    std::stable_partition(order.begin(), order.end(), [&](std::size_t i) { return what.base == names[i]; });
    std::vector<evaluation> all;
    for (const std::size_t i : order) {
      const std::string name = names[i].path + (names[i].adapter.empty() ? "" : "+" + names[i].adapter);
      FLYWHEEL_TRY(all.emplace_back(), score(plan.models[i], name));
    }
    return all;
  }

 private:
  /// Once, with the first model's vocabulary: figures per token can only be compared for one vocabulary.
  result<void> cut(const model& m) {
    if (!windows_.empty() && vocabulary_ != m.info().n_vocab)
      return error{errc::unsupported,
                   "has " + std::to_string(m.info().n_vocab) + " tokens, another model " + std::to_string(vocabulary_) +
                       "; only models of one vocabulary can be compared",
                   m.info().name};
    if (!windows_.empty()) return {};
    vocabulary_ = m.info().n_vocab;
    for (const scored_text& t : texts_) {
      evaluate::text_options how;
      how.ctx = options_.ctx;
      how.protocol = evaluate::protocol::windows;
      how.max_windows = options_.windows;
      how.spread = true;
      auto cut = evaluate::cut_windows(m.tokenizer(), t.text, how);
      if (!cut) return error{cut.error().code, cut.error().message, t.name};
      windows_.push_back(*std::move(cut));
    }
    return {};
  }

  std::span<const scored_text> texts_;
  const evolve_options& options_;
  context context_;
  std::int32_t vocabulary_ = 0;
  std::vector<std::vector<evaluate::window>> windows_;
};

double weighted_mean(std::span<const scored_text> texts, std::span<const double> values) {
  double sum = 0, weights = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].weight == 0) continue;
    sum += texts[i].weight * values[i];
    weights += texts[i].weight;
  }
  return sum / weights;
}

double value_of(objective what, std::span<const scored_text> texts, std::span<const evaluation> parents,
                const evaluation& of) {
  if (what == objective::perplexity) return weighted_mean(texts, of.nll);
  const std::vector<double> gains = gains_kept(parents, of);
  if (what == objective::mean_gain) return -weighted_mean(texts, gains);
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].weight == 0) continue;
    if (std::isnan(gains[i])) return not_a_number;
    least = std::min(least, gains[i]);
  }
  return -least;
}

result<void> check_texts(std::span<const scored_text> texts) {
  if (texts.empty()) return error{errc::invalid_argument, "there is no text to score on", "texts"};
  double weights = 0;
  for (const scored_text& t : texts) {
    if (!(t.weight >= 0) || !std::isfinite(t.weight))
      return error{errc::invalid_argument, "the weight must be at least 0", t.name};
    weights += t.weight;
  }
  if (weights == 0) return error{errc::invalid_argument, "all weights are 0", "texts"};
  return {};
}

json to_json(const evaluation& e) { return {{"nll", e.nll}, {"value", e.value}}; }

double number_of(const json& v) { return v.is_number() ? v.get<double>() : not_a_number; }  // JSON has no NaN

std::vector<double> numbers_of(const json& list) {
  std::vector<double> all;
  for (const json& v : list) all.push_back(number_of(v));
  return all;
}

evaluation evaluation_of(const json& v) {
  evaluation e;
  e.nll = numbers_of(hugging_face::member(v, "nll"));
  e.value = number_of(hugging_face::member(v, "value"));
  return e;
}

/// A search on its way: what the state file holds.
class search {
 public:
  search(const recipe& what, const std::filesystem::path& folder, std::span<const scored_text> texts,
         const evolve_options& options)
      : what_(what), folder_(folder), texts_(texts), options_(options) {}

  result<evolution> run() {
    FLYWHEEL_CHECK(check_texts(texts_));
    FLYWHEEL_TRY(const context ctx, options_.context.or_default());
    FLYWHEEL_TRY(const merge_plan plan, plan_merge(what_, folder_));
    FLYWHEEL_TRY(const recipe_numbers numbers, recipe_numbers::find(what_, plan, options_));
    cma_es_options how;
    how.start = numbers.start();
    how.lower = numbers.lower();
    how.upper = numbers.upper();
    how.step = options_.step;
    how.population = options_.population;
    how.seed = options_.seed;
    FLYWHEEL_TRY(cma_es strategy, cma_es::create(std::move(how)));
    made_.population = strategy.population();
    made_.numbers = strategy.size();
    scorer scores(texts_, options_, ctx);
    FLYWHEEL_CHECK(restore(strategy));
    if (!made_.resumed) {
      FLYWHEEL_TRY(made_.parents, scores.parents(what_, plan));
      FLYWHEEL_CHECK(check_gains());
      FLYWHEEL_TRY(made_.start, scores.score(what_, folder_));
      for (evaluation& parent : made_.parents) parent.value = value(parent);
      made_.start.value = value(made_.start);
    }
    const std::size_t n = strategy.population();
    for (std::size_t g = 0; g < strategy.state().generation; ++g) report(g, n);
    while (strategy.state().generation < options_.generations) {
      const std::span<const double> candidates = strategy.ask();
      std::vector<double> values;
      for (std::size_t k = 0; k < n; ++k) {
        if (options_.control.stopped()) return error{errc::cancelled, "cancelled", "evolve"};
        const auto genes = candidates.subspan(k * strategy.size(), strategy.size());
        FLYWHEEL_TRY(made_.history.emplace_back(), score(scores, numbers.with(genes)));
        values.push_back(made_.history.back().value);
        progress(strategy.state(), n);
      }
      FLYWHEEL_CHECK(strategy.tell(values));
      FLYWHEEL_CHECK(save(strategy.state()));
      report(strategy.state().generation - 1, n);
    }
    if (strategy.state().best.empty() || !(strategy.state().best_value < made_.start.value)) {
      // Nothing better was found.
      made_.best = what_;
      made_.best_found = made_.start;
      return std::move(made_);
    }
    made_.best = numbers.with(strategy.state().best);
    made_.best_found = *std::min_element(
        made_.history.begin(), made_.history.end(),
        [](const evaluation& a, const evaluation& b) { return b.value != b.value || a.value < b.value; });
    return std::move(made_);
  }

 private:
  [[nodiscard]] double value(const evaluation& of) const {
    return value_of(options_.objective, texts_, made_.parents, of);
  }

  /// Numbers that do not go together make a candidate that is worth nothing.
  result<evaluation> score(scorer& scores, const recipe& candidate) const {
    auto scored = scores.score(candidate, folder_);
    if (!scored && scored.error().code == errc::invalid_argument) {
      evaluation none;
      none.nll.assign(texts_.size(), not_a_number);
      none.value = not_a_number;
      return none;
    }
    if (scored) scored->value = value(*scored);
    return scored;
  }

  result<void> check_gains() const {
    if (options_.objective == objective::perplexity) return {};
    if (!what_.base)
      return error{errc::invalid_argument,
                   "gains are counted from a base_model, which the recipe has not; take the objective perplexity",
                   "objective"};
    const std::vector<double> gains = gains_kept(made_.parents, made_.parents[0]);
    for (std::size_t i = 0; i < texts_.size(); ++i)
      if (texts_[i].weight > 0 && std::isnan(gains[i]))
        return error{errc::invalid_argument,
                     "no model of the recipe is better than its base on this text: there is no gain to keep; give it "
                     "the weight 0, or take the objective perplexity",
                     texts_[i].name};
    return {};
  }

  void progress(const cma_es_state& at, std::size_t n) const {
    if (!options_.control.progress) return;
    const std::string what = "generation " + std::to_string(at.generation + 1);
    options_.control.progress(made_.history.size(), options_.generations * n, what);
  }
  void report(std::size_t generation, std::size_t n) const {
    if (options_.each) options_.each(generation, std::span(made_.history).subspan(generation * n, n));
  }

  /// What a state must agree in to be continued: all but the number of generations.
  [[nodiscard]] result<std::string> question() const {
    json all = {{"recipe", what_.text},
                {"folder", folder_.string()},
                {"objective", to_string(options_.objective)},
                {"population", made_.population},
                {"groups", options_.groups},
                {"parts", options_.parts},
                {"step", options_.step},
                {"seed", options_.seed},
                {"windows", options_.windows},
                {"ctx", options_.ctx}};
    for (const evolved_parameter& p : options_.parameters)
      all["parameters"].push_back({p.name, std::to_string(p.least), std::to_string(p.most)});
    for (const scored_text& t : texts_) all["texts"].push_back({t.name, t.weight, t.text});
    const std::string text = all.dump(-1, ' ', false, json::error_handler_t::replace);
    return digest(std::as_bytes(std::span(text)));
  }

  result<void> restore(cma_es& strategy) {
    std::error_code failed;
    if (options_.state.empty() || !std::filesystem::exists(options_.state, failed)) return {};
    const std::string where = options_.state.string();
    FLYWHEEL_TRY(const std::shared_ptr<const mapped_file> file, mapped_file::open(options_.state));
    const std::span<const std::byte> bytes = file->bytes();
    FLYWHEEL_TRY(const json all,
                 hugging_face::parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where));
    FLYWHEEL_TRY(const std::string asked, question());
    if (hugging_face::member(all, "flywheel_evolve") != state_version || hugging_face::member(all, "question") != asked)
      return error{errc::invalid_argument,
                   "is the state of a search with another recipe, other texts or other options; remove it, or name "
                   "another output",
                   where};
    const json& s = hugging_face::member(all, "search");
    const auto list = [&](const char* key) { return numbers_of(hugging_face::member(s, key)); };
    const auto count = [&](const char* key) -> std::uint64_t {
      const json& v = hugging_face::member(s, key);
      return v.is_number_unsigned() ? v.get<std::uint64_t>() : 0;
    };
    cma_es_state at{count("generation"), count("evaluations"),
                    count("random"),     number_of(hugging_face::member(s, "step")),
                    list("mean"),        list("covariance"),
                    list("step_path"),   list("path"),
                    list("best"),        number_of(hugging_face::member(s, "best_value"))};
    for (const json& e : hugging_face::member(all, "history")) made_.history.push_back(evaluation_of(e));
    for (const json& e : hugging_face::member(all, "parents")) {
      made_.parents.push_back(evaluation_of(e));
      made_.parents.back().name = hugging_face::text_of(hugging_face::member(e, "name"));
    }
    made_.start = evaluation_of(hugging_face::member(all, "start"));
    std::vector<evaluation> every = made_.history;
    every.insert(every.end(), made_.parents.begin(), made_.parents.end());
    every.push_back(made_.start);
    const bool whole =
        std::all_of(every.begin(), every.end(), [&](const evaluation& e) { return e.nll.size() == texts_.size(); });
    if (!whole || made_.parents.size() != what_.models().size() || at.evaluations != made_.history.size() ||
        at.generation * made_.population != made_.history.size() || !strategy.restore(std::move(at)))
      return error{errc::malformed, "is damaged; remove it to begin again", where};
    made_.resumed = true;
    return {};
  }

  result<void> save(const cma_es_state& at) const {
    if (options_.state.empty()) return {};
    FLYWHEEL_TRY(const std::string asked, question());
    json all = {{"flywheel_evolve", state_version},
                {"question", asked},
                {"start", to_json(made_.start)},
                {"search",
                 {{"generation", at.generation},
                  {"evaluations", at.evaluations},
                  {"random", at.random},
                  {"step", at.step},
                  {"mean", at.mean},
                  {"covariance", at.covariance},
                  {"step_path", at.step_path},
                  {"path", at.path},
                  {"best", at.best},
                  {"best_value", at.best_value}}}};
    for (const evaluation& e : made_.parents) {
      json parent = to_json(e);
      parent["name"] = e.name;
      all["parents"].push_back(std::move(parent));
    }
    for (const evaluation& e : made_.history) all["history"].push_back(to_json(e));
    const std::string text = all.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
    FLYWHEEL_TRY(io::detail::output_file file, io::detail::output_file::create(options_.state));
    FLYWHEEL_CHECK(file.write(std::as_bytes(std::span(text))));
    return file.commit();
  }

  const recipe& what_;
  const std::filesystem::path& folder_;
  std::span<const scored_text> texts_;
  const evolve_options& options_;
  evolution made_;
};

}  // namespace

std::string_view to_string(objective what) noexcept {
  switch (what) {
    case objective::perplexity:
      return "perplexity";
    case objective::mean_gain:
      return "mean-gain";
    case objective::least_gain:
      return "least-gain";
  }
  return "";
}

std::vector<double> gains_kept(std::span<const evaluation> parents, const evaluation& of) {
  std::vector<double> gains(of.nll.size(), not_a_number);
  for (std::size_t i = 0; i < gains.size() && !parents.empty(); ++i) {
    const double base = parents[0].nll[i];
    double best = base;
    for (const evaluation& p : parents) best = std::min(best, p.nll[i]);
    if (base - best >= least_gain) gains[i] = (base - of.nll[i]) / (base - best);
  }
  return gains;
}

result<recipe> with_method(const recipe& what, std::string_view method) {
  return detail::guarded([&]() -> result<recipe> {
    const merge::method* how = find_merge_method(method);
    if (how == nullptr) return error{errc::invalid_argument, "is no merge method", std::string(method)};
    const auto keep = [&](settings& all) {
      std::erase_if(all, [&](const auto& one) {
        return std::none_of(how->parameters.begin(), how->parameters.end(),
                            [&](const merge::parameter_info& p) { return p.name == one.first; });
      });
    };
    recipe made = what;
    made.method = method;
    keep(made.parameters);
    for (recipe::module& m : made.modules) {
      m.method.clear();
      keep(m.parameters);
      for (recipe::slice& s : m.slices) {
        s.method.clear();
        keep(s.parameters);
        for (recipe::source& source : s.sources) keep(source.parameters);
      }
    }
    made.text = to_yaml(made);
    return made;
  });
}

result<evolution> evolve(const recipe& what, const std::filesystem::path& folder, std::span<const scored_text> texts,
                         const evolve_options& options) {
  return detail::guarded([&] { return search(what, folder, texts, options).run(); });
}

result<std::vector<evaluation>> evaluate_recipes(std::span<const recipe> what, const std::filesystem::path& folder,
                                                 std::span<const scored_text> texts, const evolve_options& options) {
  return detail::guarded([&]() -> result<std::vector<evaluation>> {
    if (what.empty()) return error{errc::invalid_argument, "there is no recipe", "recipes"};
    FLYWHEEL_CHECK(check_texts(texts));
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    FLYWHEEL_TRY(const merge_plan plan, plan_merge(what[0], folder));
    scorer scores(texts, options, ctx);
    FLYWHEEL_TRY(std::vector<evaluation> all, scores.parents(what[0], plan));
    const std::size_t parents = all.size();
    for (const recipe& r : what) {
      FLYWHEEL_TRY(all.emplace_back(), scores.score(r, folder));
    }
    for (evaluation& e : all) e.value = value_of(options.objective, texts, std::span(all).first(parents), e);
    return all;
  });
}

}  // namespace flywheel::inline v0::adapt
