// Tokens with a role, and their spellings inside text.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "trie.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

enum class model_kind : std::uint8_t { spm, bpe, unigram, wordpiece };

/// Reads bos, eos and the like. Where a key is missing, what files of that kind mean by its absence. `add_bos` is what
/// the pre-tokenizer's rule says when the file does not. Errors: malformed (ids outside the vocabulary, or
/// add_bos_token without a bos token).
[[nodiscard]] result<special_tokens> read_special_tokens(const io::metadata& meta, const vocabulary& v, model_kind kind,
                                                         bool add_bos);

/// Sorted ids of the tokens that end a generation: eos, eot, eom, and the spellings that chat models use for them.
[[nodiscard]] result<std::vector<token_id>> read_ending_tokens(const io::metadata& meta, const vocabulary& v,
                                                               const special_tokens& special);

/// Finds the spellings of control and user-defined tokens in text.
class special_matcher {
 public:
  special_matcher() = default;
  special_matcher(const io::metadata& meta, const vocabulary& v);

  /// Cuts `text` into plain stretches and tokens: from left to right, the longest spelling first. User-defined tokens
  /// always count, control and unknown tokens only with `parse_special`.
  void cut(std::string_view text, bool parse_special, const vocabulary& v, std::vector<segment>& out) const;

 private:
  trie spellings_;
  std::array<bool, 256> starts_all_{}, starts_user_{};  // first bytes of the spellings
  bool any_ = false, any_user_ = false;
  std::vector<token_id> strip_left_, strip_right_;  // sorted; these swallow white space beside them
};

}  // namespace flywheel::inline v0::text
