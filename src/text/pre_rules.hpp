// The table of pre-tokenizers: how byte-level vocabularies cut text into words before merging.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "ascii_scan.hpp"

namespace flywheel::inline v0::text {

/// One published expression, and its hand-written equivalent for ASCII if there is one.
struct pre_expression {
  const char* pattern;
  ascii_scan scan = nullptr;
};

/// What `tokenizer.ggml.pre` names. Each expression cuts the pieces that the one before it left: matches become pieces
/// of their own, and so does what lies between them.
struct pre_rule {
  static constexpr std::size_t most_steps = 6;

  std::string_view name;
  std::array<const pre_expression*, most_steps> steps;  // null after the last
  bool whole_words = false;                             ///< A word that is a token needs no merging ("ignore_merges").
  bool add_bos = false;                                 ///< Where the file does not say whether to add bos.
};

/// Null for a name that is not in the table.
[[nodiscard]] const pre_rule* find_pre_rule(std::string_view name) noexcept;
/// All rows, for tests and messages.
[[nodiscard]] std::span<const pre_rule> pre_rules() noexcept;

}  // namespace flywheel::inline v0::text
