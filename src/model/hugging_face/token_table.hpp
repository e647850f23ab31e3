// A vocabulary while it is read: one slot for each row of the embedding table.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "src/model/hugging_face/folder.hpp"

namespace flywheel::inline v0::hugging_face {

/// What the file formats have in common. Slots that no token takes are unused and called "[PAD7]".
struct token_table {
  explicit token_table(std::int64_t rows);

  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(tokens.size()); }
  /// Error: malformed for an id without a row; `where` is the file.
  [[nodiscard]] result<void> set(std::int64_t id, std::string token, text::token_kind kind, float score,
                                 const std::string& where);
  /// A token beside the model's own. Not special ones are matched in the text as it is, so a mark of a space is one.
  /// Ids without a row are left out.
  void add_special(std::int64_t id, std::string token, bool special);
  /// -1 when no token is spelled so.
  [[nodiscard]] std::int64_t find(std::string_view token) const noexcept;

  std::vector<std::string> tokens;
  std::vector<std::int32_t> kinds;  ///< text::token_kind
  std::vector<float> scores;
};

/// U+2581, with which SentencePiece marks a space.
inline constexpr std::string_view space_mark = "\xE2\x96\x81";

/// What a file said about the vocabulary: tokens, and tokenizer.ggml.* keys other than those of the tokens.
struct read_vocabulary {
  token_table table;
  std::string model = {};  ///< tokenizer.ggml.model
  bool scored = false;     ///< Scores mean something.
  io::metadata keys = {};
  /// Names and ids that other files do not give: "bos_token" -> "<s>".
  std::map<std::string, std::string, std::less<>> special = {};
};

/// tokenizer.json. Errors: malformed; unsupported (kinds of models, normalizers and expressions that GGUF has no name
/// for, because a wrong one would give wrong tokens).
[[nodiscard]] result<read_vocabulary> read_tokenizer_json(const folder& from, std::int64_t rows);
/// A SentencePiece model (protobuf). Errors: malformed.
[[nodiscard]] result<read_vocabulary> read_sentencepiece(std::string_view bytes, const std::string& where,
                                                         std::int64_t rows);
/// vocab.txt: a WordPiece token per line.
[[nodiscard]] result<read_vocabulary> read_vocab_txt(std::string_view text, const std::string& where,
                                                     std::int64_t rows);

/// tokenizer.ggml.pre for the "pre_tokenizer" of a byte-level vocabulary. `whole_words`: the model has ignore_merges.
[[nodiscard]] result<std::string> pre_tokenizer_name(const json& pre_tokenizer, bool whole_words,
                                                     const std::string& where);

/// WordPiece as GGUF spells it: "##ing" is "ing", and what begins a word has the mark of a space in front.
void mark_words(token_table& table);

}  // namespace flywheel::inline v0::hugging_face
