// Cuts text into words by the rule that a vocabulary names.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "flywheel/core/result.hpp"
#include "flywheel/detail/try.hpp"
#include "pre_rules.hpp"
#include "regex.hpp"

namespace flywheel::inline v0::text {

/// Immutable; thread-safe (each thread brings its own regex_matcher).
class pretokenizer {
 public:
  pretokenizer() = default;
  /// Compiles the rule's expressions. Errors: internal, out_of_memory. `fast` off: PCRE2 alone, for comparison.
  [[nodiscard]] static result<pretokenizer> make(const pre_rule& rule, bool fast = true);

  /// Calls word(std::string_view) for each word of `text`, in order; together they are the text. `text` is valid UTF-8.
  /// Errors: those of regex_matcher::search, and what `word` throws.
  template <class Word>
  [[nodiscard]] result<void> split(std::string_view text, regex_matcher& matcher, Word&& word) const {
    return cut(0, text, matcher, word);
  }

 private:
  struct step {
    regex expression;
    ascii_scan scan = nullptr;
  };

  template <class Word>
  result<void> cut(std::size_t level, std::string_view piece, regex_matcher& matcher, Word& word) const {
    if (piece.empty()) return {};
    if (level == levels_) {
      word(piece);
      return {};
    }
    const step& s = steps_[level];
    const char* const data = piece.data();
    const char* const end = data + piece.size();
    std::size_t at = 0;    // where the current stretch began
    std::size_t from = 0;  // where to search on; beyond `at` only after an empty match
    while (at < piece.size()) {
      if (s.scan != nullptr && from == at) {
        if (const std::size_t length = s.scan(data + at, end)) {
          FLYWHEEL_CHECK(cut(level + 1, piece.substr(at, length), matcher, word));
          from = at += length;
          continue;
        }
      }
      FLYWHEEL_TRY(const regex_matcher::found match, matcher.search(s.expression, piece, from));
      if (!match.matched) break;
      if (match.begin > at) FLYWHEEL_CHECK(cut(level + 1, piece.substr(at, match.begin - at), matcher, word));
      if (match.end > match.begin) {
        FLYWHEEL_CHECK(cut(level + 1, piece.substr(match.begin, match.end - match.begin), matcher, word));
        from = at = match.end;
      } else {  // an empty match only separates
        at = match.begin;
        from = next_character(piece, match.begin);
        if (from >= piece.size()) break;
      }
    }
    if (at < piece.size()) FLYWHEEL_CHECK(cut(level + 1, piece.substr(at), matcher, word));
    return {};
  }

  [[nodiscard]] static std::size_t next_character(std::string_view text, std::size_t at) noexcept;

  std::array<step, pre_rule::most_steps> steps_;
  std::size_t levels_ = 0;
};

}  // namespace flywheel::inline v0::text
