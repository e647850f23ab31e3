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
/// a list of those with filters, of which the first counts whose filter is part of the tensor's name, GGUF's or Hugging
/// Face's; an empty filter fits all.
struct setting {
  struct filtered {
    std::string filter;
    std::vector<double> values;
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
  std::optional<dtype> type;              ///< out_dtype, else dtype; nothing: the first model's.
  std::string tokenizer_source = "base";  ///< base, union, or model: by path; `base` without one: the first model's.
  /// What tokens become that a model does not have: tokenizer.tokens of the recipe.
  struct token_source {
    std::string token;
    std::optional<model_reference> from;  ///< This model's row; nothing: as for all tokens.
    bool force = false;                   ///< Also where a model has the token.
  };
  std::vector<token_source> tokens;
  std::uint64_t seed = 0;
  std::string text;  ///< As it was read.

  /// Errors: malformed, naming line and key (no YAML, anchors that contain themselves, not exactly one of models,
  /// slices and modules, wrong types), unsupported (keys and methods that are not known).
  [[nodiscard]] FLYWHEEL_API static result<recipe> parse(std::string_view yaml, const std::string& where = {});
  [[nodiscard]] FLYWHEEL_API static result<recipe> read(const std::filesystem::path& path);
  /// Every model it names, once, in the order of naming.
  [[nodiscard]] FLYWHEEL_API std::vector<model_reference> models() const;
};

/// Opens what a recipe names and resolves every value for every tensor. Relative paths start at `folder`. Embeddings of
/// models with other vocabularies are aligned to the result's. Errors: those of opening; invalid_argument naming the
/// tensor and both files (architectures, extents, missing tensors, vocabularies that differ without tokenizer.source
/// union), and the parameter (missing, out of range, not the method's).
[[nodiscard]] FLYWHEEL_API result<merge_plan> plan_merge(const recipe& what, const std::filesystem::path& folder = {});

}  // namespace flywheel::inline v0::adapt
