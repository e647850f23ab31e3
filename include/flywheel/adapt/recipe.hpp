// Recipes of merges, as mergekit's YAML says them: read, and resolved against their models into a plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "flywheel/adapt/merge_models.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::adapt {

/// A value of a recipe: a number, a gradient (numbers spread evenly over a slice's layers and interpolated between), or
/// a list of those with filters, of which the first counts whose filter is part of the tensor's name; an empty filter
/// fits all. Names are Hugging Face's ("model.layers.3.mlp.up_proj.weight"); filters that no tensor of the model has in
/// its name there are looked for in GGUF's ("blk.3.ffn_up.weight").
struct setting {
  struct filtered {
    std::string filter;
    std::vector<double> values;
    std::string word;  ///< Of parameters that take words, instead of values.
  };
  std::vector<filtered> choices;  ///< At least one; a plain number is one choice of one value.
};
using settings = std::map<std::string, setting, std::less<>>;

/// "path", or "path+adapter", as recipes name models.
struct model_reference {
  std::string path;
  std::string adapter;  ///< Merged into the model before; empty: none.
  friend bool operator==(const model_reference&, const model_reference&) = default;
};

struct recipe {
  struct source {
    model_reference model;
    std::int64_t first = 0, last = 0;  ///< layer_range [first, last); both 0: all.
    settings parameters;
  };
  struct slice {
    std::vector<source> sources;
    std::string method;  ///< Empty: the module's.
    std::optional<model_reference> base;
    settings parameters;
  };
  struct module {
    std::string name;  ///< Of models with one module: "default".
    std::vector<slice> slices;
    std::string method;
    std::optional<model_reference> base;
    settings parameters;
  };
  std::vector<recipe::module> modules;  ///< models: is one module with one slice of all layers.
  std::string method;
  std::optional<model_reference> base;
  settings parameters;
  std::optional<dtype> type;  ///< out_dtype, else dtype; nothing: the first model's.
  /// "base" (without one: the first model), "union", or a model's path: whose vocabulary the result has; embeddings of
  /// models with another are aligned to it. Empty: the base's, and the others must have the same.
  std::string tokenizer_source;
  /// What a token becomes in models that do not have it: tokenizer.tokens of the recipe. Tokens that no vocabulary has
  /// are added.
  struct token_source {
    std::string token;
    std::optional<model_reference> from;  ///< This model's row; nothing: as for all tokens.
    std::string other;                    ///< Of that model: the row of this token;
    std::optional<std::int64_t> id = {};  ///< the row of this number; neither: that of the token itself.
    bool zero = false;                    ///< Zeros, instead of a row.
    bool force = false;                   ///< Also where a model has the token.
  };
  std::vector<token_source> tokens;
  std::int64_t pad_to_multiple_of = 1;  ///< Of the vocabulary's size.
  std::string chat_template;            ///< Jinja, "auto" (what most models have) or "chatml"; empty: the base's.
  std::string name;  ///< Of the result; empty: none said. (A key of its own, like `seed`: mergekit has neither.)
  std::uint64_t seed = 0;
  std::string text;  ///< As it was read.

  /// Errors: malformed, naming line and key (no YAML, more than 256 KiB, anchors that contain themselves or expand to
  /// too much, not exactly one of models, slices and modules, wrong types), unsupported (keys that are not known).
  [[nodiscard]] FLYWHEEL_API static result<recipe> parse(std::string_view yaml, const std::string& where = {});
  [[nodiscard]] FLYWHEEL_API static result<recipe> read(const std::filesystem::path& path);
  /// Every model it names, once: sources, then bases, then those that tokens come from.
  [[nodiscard]] FLYWHEEL_API std::vector<model_reference> models() const;
};

/// Opens what a recipe names and resolves every value for every tensor. Relative paths start at `folder`. Embeddings of
/// models with other vocabularies are aligned to the result's. Errors: those of opening; invalid_argument naming the
/// tensor and both files (architectures, extents, missing tensors, vocabularies that differ without tokenizer.source
/// union), and the parameter (missing, out of range, not the method's).
[[nodiscard]] FLYWHEEL_API result<merge_plan> plan_merge(const recipe& what, const std::filesystem::path& folder = {});

}  // namespace flywheel::inline v0::adapt
