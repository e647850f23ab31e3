// What the kinds of vocabulary have in common: plain text to ids, and an id to its bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0::text {

/// A stretch of plain text, or a token that was spelled out (id >= 0).
struct segment {
  std::string_view text;
  token_id id = -1;
};

/// Immutable; thread-safe. Working memory lives in the call.
class codec {
 public:
  codec() = default;
  codec(const codec&) = delete;
  codec& operator=(const codec&) = delete;
  virtual ~codec() = default;

  /// Appends the ids of all segments; `text_bytes` is the length of the text they were cut from. May throw bad_alloc.
  [[nodiscard]] virtual result<void> encode(const std::vector<segment>& segments, std::size_t text_bytes,
                                            std::vector<token_id>& out) const = 0;
  /// Appends the bytes that a token in range stands for. May throw bad_alloc.
  virtual void render(token_id id, std::string& out) const = 0;
};

/// U+2581, which SentencePiece and WordPiece files write for a space.
inline constexpr std::string_view escaped_space = "\xE2\x96\x81";

/// Appends `piece` with U+2581 turned back into spaces.
void append_unescaped(std::string_view piece, std::string& out);
/// Appends `text` with spaces turned into U+2581.
void append_escaped(std::string_view text, std::string& out);

}  // namespace flywheel::inline v0::text
