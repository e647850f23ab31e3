// WordPiece (BERT and its descendants).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "codec.hpp"
#include "sentencepiece.hpp"
#include "trie.hpp"
#include "vocabulary.hpp"
#include "word_cache.hpp"

namespace flywheel::inline v0::text {

struct wordpiece_options {
  bool lowercase = true;
  bool strip_accents = true;
  token_id unknown = -1;
};

/// Text is cleaned, cut at white space and punctuation, and each word covered from the left by the longest tokens.
/// In GGUF files U+2581 marks a token that starts a word; the others ("##ing" elsewhere) have no mark.
class wordpiece_codec final : public codec {
 public:
  /// `v` must outlive the codec.
  wordpiece_codec(const vocabulary& v, const wordpiece_options& options);

  [[nodiscard]] result<void> encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                    std::vector<token_id>& out) const override;
  void render(token_id id, std::string& out) const override { render_piece(vocabulary_, id, out); }

 private:
  struct word {
    std::string text;            // normalised, with the mark in front
    std::size_t characters = 0;  // without the mark
    word_cache cache;
    explicit word(std::size_t text_bytes) : cache(text_bytes) {}
  };
  void encode_text(std::string_view text, word& work, std::vector<token_id>& out) const;
  void add_ascii(char c, word& work, std::vector<token_id>& out) const;
  void add_character(std::uint32_t code, word& work, std::vector<token_id>& out) const;
  void finish(word& work, std::vector<token_id>& out) const;
  void cover(const word& work, std::vector<token_id>& out) const;

  const vocabulary& vocabulary_;
  wordpiece_options options_;
  trie pieces_;
};

}  // namespace flywheel::inline v0::text
