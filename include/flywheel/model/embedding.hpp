// Texts as vectors: what model::embed and model::rerank take and give. docs/embeddings.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/model/adapter.hpp"

namespace flywheel::inline v0 {

/// How the rows that a model computes for a text's tokens, [n_tokens, n_embd] after its final norm, become its result.
enum class pooling : std::uint8_t {
  automatic,  ///< What `<architecture>.pooling_type` says; without that key: mean for encoders, last for decoders.
  none,       ///< All rows.
  mean,       ///< Their mean.
  cls,        ///< The first one: that of BERT's classifier token.
  last,       ///< The last one.
  /// A score of a pair of texts, not scaled: the classification head of an encoder, or how probable a decoder holds
  /// "yes" against "no".
  rank,
};

struct embed_options {
  flywheel::pooling pooling = pooling::automatic;
  bool normalize = true;  ///< Scale each vector to length 1.
  bool truncate = false;  ///< Cut texts that are too long, keeping the special token at their end. Otherwise: an error.
  std::int32_t n_ctx = 0;  ///< Tokens a text may have; 0: as many as the model was trained for.
  /// Tokens computed at a time, of as many texts as fit; sets the memory. An encoder has to take a text in one piece
  /// and uses more when one is longer.
  std::int32_t n_batch = 512;
  dtype kv_type = dtype::f16;  ///< Of the KV cache that decoders need. See session_options.
  flywheel::control control;
  std::vector<adapter_use> adapters = {};  ///< That all texts go through. Errors: those of session::set_adapters.
};

/// Results for some texts, in their order.
struct embeddings {
  std::int32_t width = 0;               ///< n_embd, or scores per pair.
  std::vector<std::size_t> first_rows;  ///< [texts + 1]: text i has rows first_rows[i] .. first_rows[i + 1] - 1.
  std::vector<float> values;            ///< [rows, width]; one row per text, unless pooling is none.

  /// How many texts.
  [[nodiscard]] std::size_t size() const noexcept { return first_rows.empty() ? 0 : first_rows.size() - 1; }
  /// The rows of text `i`.
  [[nodiscard]] std::span<const float> operator[](std::size_t i) const noexcept {
    const auto cols = static_cast<std::size_t>(width);
    return std::span(values).subspan(first_rows[i] * cols, (first_rows[i + 1] - first_rows[i]) * cols);
  }
};

}  // namespace flywheel::inline v0
