// Computing the results of token lists: packing them into forward passes, and pooling what comes out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/model/model.hpp"

namespace flywheel::inline v0::detail {

/// The tokens of one text, or of a pair of texts.
struct embed_item {
  std::span<const token_id> ids;
  std::size_t second = ~std::size_t{0};  ///< From this token on they belong to the second text of a pair.
};

/// Options with what a model's metadata and engine decide filled in.
struct embed_plan {
  flywheel::pooling pooling = pooling::mean;  ///< Never automatic.
  std::size_t n_ctx = 0;                      ///< Tokens a text may have.
};

/// Errors: invalid_argument, unsupported; malformed for an unknown `pooling_type`.
[[nodiscard]] result<embed_plan> plan_embedding(const model::state& m, const embed_options& options);

/// See model::embed. Items longer than plan.n_ctx are refused.
[[nodiscard]] result<embeddings> embed_items(const model::state& m, std::span<const embed_item> items,
                                             const embed_plan& plan, const embed_options& options);

}  // namespace flywheel::inline v0::detail
