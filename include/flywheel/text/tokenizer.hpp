// Text to token ids and back, from the vocabulary that a model file carries.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0 {

/// A token's number in a vocabulary.
using token_id = std::int32_t;

namespace text {

enum class token_kind : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// Tokens with a role; -1 when the vocabulary has none.
struct special_tokens {
  token_id bos = -1;  ///< BERT: the classifier token.
  token_id eos = -1, unknown = -1, padding = -1, separator = -1, mask = -1, eot = -1;
  bool add_bos = false;  ///< encode(add_special) puts bos first.
  bool add_eos = false;  ///< encode(add_special) puts eos (BERT: separator) last.
};

struct encode_options {
  bool add_special = false;    ///< Add bos/eos (BERT: cls/sep) as the vocabulary asks for.
  /// "<|eot_id|>" in the text becomes that token; otherwise it is plain text. Tokens that the vocabulary calls
  /// user-defined ("<think>") are recognised either way, as they were in training.
  bool parse_special = false;
};

struct decode_options {
  bool render_special = true;       ///< Control tokens appear as their text; otherwise they vanish.
  bool strip_leading_space = true;  ///< Take away the space a SentencePiece vocabulary put in front.
};

/// Immutable after construction; a cheap handle, copied by value; thread-safe.
class FLYWHEEL_API tokenizer {
 public:
  tokenizer() = default;
  /// From `tokenizer.ggml.*` keys. A byte-level vocabulary without `tokenizer.ggml.pre` (files of 2023) is cut by the
  /// rule "default", which most such files want, but not all; a name that is not known is refused, because a wrong rule
  /// gives wrong tokens. Errors: not_found (no vocabulary), malformed, unsupported (model or pre-tokenizer, named in the
  /// message), out_of_memory.
  [[nodiscard]] static result<tokenizer> from_metadata(const io::metadata& meta);

  [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }
  /// Any bytes are accepted: invalid UTF-8 becomes byte tokens (spm-bpe), U+FFFD (bpe, unigram) or nothing (wordpiece).
  /// Time grows no faster than n log n, whatever the text. Errors: invalid_argument (text beyond 512 MiB, or one that the
  /// pre-tokenizer's expression cannot match within its limits), out_of_memory.
  [[nodiscard]] result<std::vector<token_id>> encode(std::string_view text, const encode_options& options = {}) const;
  /// Bytes of the ids; may end inside a UTF-8 sequence (see decoder). Error: invalid_argument for an id out of range.
  [[nodiscard]] result<std::string> decode(std::span<const token_id> ids, const decode_options& options = {}) const;

  [[nodiscard]] std::int32_t size() const noexcept;
  /// The vocabulary's spelling ("▁the", "Ġthe"); empty for an id out of range.
  [[nodiscard]] std::string_view piece(token_id id) const noexcept;
  [[nodiscard]] token_kind kind(token_id id) const noexcept;
  /// The id of a spelling; -1 when there is none.
  [[nodiscard]] token_id find(std::string_view piece) const noexcept;
  [[nodiscard]] const special_tokens& special() const noexcept;
  /// True for eos, eot and the other tokens that end a generation.
  [[nodiscard]] bool ends_generation(token_id id) const noexcept;
  /// "spm-bpe", "bpe", "unigram", "wordpiece".
  [[nodiscard]] std::string_view model_name() const noexcept;

  struct state;
  explicit tokenizer(std::shared_ptr<const state> s) noexcept : state_(std::move(s)) {}

 private:
  friend class decoder;
  std::shared_ptr<const state> state_;
};

/// Turns a stream of ids into text that never ends inside a UTF-8 sequence. All pieces together are what decode() gives,
/// where that is valid UTF-8; an invalid byte becomes U+FFFD. One per stream; not thread-safe.
class FLYWHEEL_API decoder {
 public:
  /// `continues`: the text before the stream is not empty, so a leading space is part of it.
  explicit decoder(tokenizer vocabulary, decode_options options = {}, bool continues = false);
  /// The text that has become complete; may be empty. Errors: invalid_argument for an id out of range, out_of_memory;
  /// after an error the decoder is as it was before.
  [[nodiscard]] result<std::string> push(token_id id);
  /// What is left at the end: incomplete sequences become U+FFFD.
  [[nodiscard]] std::string flush() noexcept;

 private:
  tokenizer vocabulary_;
  decode_options options_;
  std::string pending_;
  bool first_;
};

}  // namespace text
}  // namespace flywheel::inline v0
