// Searching over merges: a recipe's numbers are changed by CMA-ES, each candidate is merged in memory, and held-out
// text says what it is worth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/adapt/recipe.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::adapt {

/// What a search makes small or large. The gain that a candidate keeps on a text is (base - candidate) / (base - best
/// parent), in log-perplexity: 0 as the base, 1 as the best parent.
enum class objective : std::uint8_t {
  perplexity,  ///< Least weighted mean of log-perplexities.
  mean_gain,   ///< Largest weighted mean of gains.
  least_gain,  ///< Largest gain on the text where it is smallest. Weights only choose: 0 leaves a text out.
};
/// "perplexity", "mean-gain", "least-gain".
[[nodiscard]] FLYWHEEL_API std::string_view to_string(objective what) noexcept;

/// A number that is searched for, in every group of layers (and for every model, if it is per model).
struct evolved_parameter {
  std::string name;                                         ///< As the method declares it.
  double least = std::numeric_limits<double>::quiet_NaN();  ///< NaN: the method's bound, or, where it has none,
  double most = std::numeric_limits<double>::quiet_NaN();   ///< 1 from the recipe's own numbers.
};

struct scored_text {
  std::string name, text;
  double weight = 1;  ///< At least 0. 0: only reported.
};

/// What candidates are worth, and parents. Log-perplexities of the texts, in their order.
struct evaluation {
  std::string name;  ///< Of parents: their path. Else empty.
  std::vector<double> nll;
  double value = 0;  ///< Of the objective, less is better: gains are negated.
};

struct evolve_options {
  std::vector<evolved_parameter> parameters = {};  ///< Empty: weight, density, t and select_topk, where there are some.
  adapt::objective objective = objective::least_gain;
  std::size_t generations = 20;
  std::size_t population = 0;  ///< 0: 4 + 3 ln n.
  std::size_t groups = 3;      ///< Of consecutive layers; embeddings, output head and its norm are one more. A recipe
                               ///< of several slices has one group for each of them instead.
  bool parts = false;          ///< Attention, feed-forward and norms of a group apart.
  double step = 0.1;           ///< First standard deviation, in widths of the bounds.
  std::uint64_t seed = 1;
  std::int64_t windows = 16;         ///< Of a text, evenly from all of it; 0: all.
  std::int32_t ctx = 256;            ///< Tokens of a window; every one is scored, as `flywheel perplexity` does.
  std::filesystem::path state = {};  ///< The search is saved here after every generation, and goes on from what is
                                     ///< here; empty: nowhere.
  flywheel::context context = {};
  flywheel::control control = {};  ///< Progress in evaluations.
  /// After every generation, also those that were read from the state: its evaluations.
  std::function<void(std::size_t generation, std::span<const evaluation> candidates)> each = {};
};

struct evolution {
  recipe best;  ///< The best candidate; `text` is its YAML. Paths are those of the recipe that was searched.
  evaluation best_found;
  evaluation start;                 ///< The recipe as it was given.
  std::vector<evaluation> parents;  ///< The base first, if there is one, then every model of the recipe.
  std::vector<evaluation> history;  ///< All candidates, generation by generation.
  std::size_t population = 0;
  std::size_t numbers = 0;  ///< That were searched for.
  bool resumed = false;
};

/// Searches. The result does not depend on interruptions, nor on the number of threads; more generations than before
/// continue a search that was finished. Memory: one merged model, beside the mapped parents. A cancelled search loses
/// its last generation only. Errors: those of plan_merge, merge_in_memory, models and windows; invalid_argument
/// (options; nothing to search over; gains without a base, or on a text where no parent is better than it, naming it;
/// a state of another search), malformed and io (the state), cancelled, out_of_memory.
[[nodiscard]] FLYWHEEL_API result<evolution> evolve(const recipe& what, const std::filesystem::path& folder,
                                                    std::span<const scored_text> texts,
                                                    const evolve_options& options = {});

/// What recipes are worth on texts in evolve's way, for final figures on other texts: the first one's base, if it has
/// one, its models, and then every recipe. Errors: those of evolve.
[[nodiscard]] FLYWHEEL_API result<std::vector<evaluation>> evaluate_recipes(std::span<const recipe> what,
                                                                            const std::filesystem::path& folder,
                                                                            std::span<const scored_text> texts,
                                                                            const evolve_options& options = {});

/// The gain kept on each text: 1 as the best of the parents (the base first). NaN where no parent is better than the
/// base.
[[nodiscard]] FLYWHEEL_API std::vector<double> gains_kept(std::span<const evaluation> parents, const evaluation& of);

/// The recipe with another method, without the parameters that the method does not have.
[[nodiscard]] FLYWHEEL_API result<recipe> with_method(const recipe& what, std::string_view method);

/// A recipe as YAML that recipe::parse reads back. Relative paths start at `from` and are written so that they start at
/// `to`; both empty: as they are.
[[nodiscard]] FLYWHEEL_API std::string to_yaml(const recipe& what, const std::filesystem::path& from = {},
                                               const std::filesystem::path& to = {});

}  // namespace flywheel::inline v0::adapt
