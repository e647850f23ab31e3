// What the two kinds of SentencePiece vocabulary share: spaces, words, byte tokens, rendering.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "vocabulary.hpp"

namespace flywheel::inline v0::text {

/// Where text may be cut without changing its ids. SentencePiece models look at a whole text at once; but no token can
/// lie across a place where no token of the vocabulary has such a pair of characters inside.
class word_cutter {
 public:
  word_cutter() = default;
  explicit word_cutter(const vocabulary& v);

  /// End of the word that begins at `at`: spaces, then what follows them up to the next space that starts a word.
  /// In `text` a space is ' '.
  [[nodiscard]] std::size_t word_end(std::string_view text, std::size_t at) const noexcept {
    while (at < text.size() && text[at] == ' ') ++at;
    while (at < text.size() && (text[at] != ' ' || joins_[static_cast<unsigned char>(text[at - 1])])) ++at;
    return at;
  }

 private:
  std::array<bool, 256> joins_{};  // some token has this byte before U+2581
};

/// The tokens for text that the vocabulary cannot spell.
class byte_fallback {
 public:
  byte_fallback() = default;
  byte_fallback(const vocabulary& v, token_id unknown);

  /// All 256 bytes have tokens.
  [[nodiscard]] bool complete() const noexcept { return complete_; }
  /// Appends the tokens of the bytes; for a byte that has none the unknown token, if there is one.
  void append(std::string_view bytes, std::vector<token_id>& out) const {
    for (const char c : bytes) {
      const token_id id = tokens_[static_cast<unsigned char>(c)];
      if (id >= 0) out.push_back(id);
    }
  }

 private:
  std::array<token_id, 256> tokens_{};
  bool complete_ = false;
};

/// Appends the bytes of a token of a SentencePiece or WordPiece vocabulary.
void render_piece(const vocabulary& v, token_id id, std::string& out);

/// True for kinds that text may turn into by itself: not control, unknown or byte tokens.
[[nodiscard]] constexpr bool is_text_kind(token_kind kind) noexcept {
  return kind == token_kind::normal || kind == token_kind::user_defined || kind == token_kind::unused;
}

}  // namespace flywheel::inline v0::text
