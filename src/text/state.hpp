// What a tokenizer handle points at.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "special.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

struct tokenizer::state {
  vocabulary tokens;
  special_tokens special;
  special_matcher matcher;
  std::vector<token_id> ending;  // sorted
  model_kind kind = model_kind::spm;
  bool space_prefix = false;     // decoding takes the first space away
  std::unique_ptr<codec> model;  // refers to `tokens`

  /// Appends what a token in range shows under `options`; `first`: nothing was shown before. False: it shows nothing.
  bool render(token_id id, const decode_options& options, bool first, std::string& out) const;
};

/// Moves text from `pending` to `out` and returns how many bytes it took. `tidy`: take away the spaces that WordPiece
/// puts before punctuation. `repair`: invalid UTF-8 becomes U+FFFD. Unless `last`, what later bytes may change stays.
std::size_t drain(std::string_view pending, bool tidy, bool repair, bool last, std::string& out);

}  // namespace flywheel::inline v0::text
