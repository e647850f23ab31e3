// A mixture of experts from dense models that are children of one architecture: each gives its feed-forward blocks, a
// base all the rest, and prompts the routers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/adapt/recipe.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::adapt {

/// Where a router's vectors come from. A layer's router scores its feed-forward input x by w_e . x, and the softmax of
/// these chooses experts.
enum class gate_mode : std::uint8_t {
  /// From the mean x of each expert's prompts, less that of its negative prompts: differences from the mean over
  /// experts, divided by the variance within experts (Fisher's discriminant with a diagonal covariance), and without
  /// the part along the mean of all, so that w_e . x is 0 there.
  hidden,
  cheap_embed,  ///< From mean token embeddings, the same in every layer: nothing is run.
  random,       ///< Random, for training.
};

/// mergekit-moe's YAML.
struct experts_recipe {
  struct expert {
    model_reference model;
    std::vector<std::string> positive_prompts, negative_prompts;
  };
  model_reference base;
  std::vector<expert> experts;
  gate_mode gate = gate_mode::hidden;
  std::int64_t experts_per_token = 2;
  std::optional<dtype> type;  ///< Of matrices; nothing: as they are.
  std::string text;           ///< As it was read.

  /// Errors: malformed (naming line and key), unsupported (keys that are not known, shared experts).
  [[nodiscard]] FLYWHEEL_API static result<experts_recipe> parse(std::string_view yaml, const std::string& where = {});
};

struct experts_options {
  /// By how much the router's score of an expert exceeds the next one's, at the mean x of its prompts and on average
  /// over experts, in nats: e^s to 1 between the first two. Where x is not known (cheap_embed, random): the norm of
  /// w_e.
  double sharpness = 4;
  std::uint64_t seed = 1;
  std::int32_t ctx = 512;  ///< Tokens of a prompt that are run at once; longer ones are cut.
  flywheel::context context = {};
  flywheel::control control = {};  ///< Progress in prompts.
};

/// The mixture as an archive whose experts are read from the models' files when they are read; convert writes it.
/// Relative paths start at `folder`. Memory: the base while prompts are run, then routers. Errors: those of opening and
/// running; unsupported (an architecture without such mixtures; models that have experts); invalid_argument naming the
/// tensor and both files (extents, types, missing tensors), and the expert (no prompts).
[[nodiscard]] FLYWHEEL_API result<io::archive> mix_experts(const experts_recipe& what,
                                                           const std::filesystem::path& folder = {},
                                                           const experts_options& options = {});

}  // namespace flywheel::inline v0::adapt
