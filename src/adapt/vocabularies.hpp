// The vocabulary of a merge's result, and every model's embeddings in its order.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "flywheel/adapt/recipe.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::adapt {

/// Gives all `models` embeddings (and output heads) with as many rows as the result's vocabulary, row i of token i.
/// `names` [models]: what the recipe calls them. `main`: the base, else the first model, whose metadata `result` is a
/// copy of; afterwards it has the result's vocabulary. Models that fit already stay as they are; the others' tensors
/// are computed as they are read, in f32.
///
/// Without recipe.tokenizer_source vocabularies must be equal as far as both go; embeddings then get the rows of the
/// base, or without one those that all models have. With one, tokens are matched by their text (mergekit's rules): a
/// row that a model does not have is the base's, else the mean of the models that have one, else 0. A union has main's
/// tokens with their numbers, then the others' in the order of models, of the kind that they have there; merges and
/// scores of new tokens come after all old ones, so that text is first cut as before.
///
/// Errors: invalid_argument naming both files and the first token that differs; unsupported (vocabularies of two
/// kinds), not_found (a token or model that tokenizer.tokens names).
[[nodiscard]] result<void> align_vocabularies(const recipe& what, const std::vector<model_reference>& names,
                                              std::optional<std::size_t> base, std::size_t main,
                                              std::vector<io::archive>& models, io::metadata& result);

}  // namespace flywheel::inline v0::adapt
