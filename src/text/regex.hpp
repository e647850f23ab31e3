// PCRE2 behind a small interface: compiled once, matched from any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::text {

/// A compiled expression, Unicode-aware, just-in-time compiled where the machine allows it. Immutable; thread-safe.
class regex {
 public:
  regex() = default;
  /// Errors: internal (the expression is wrong), out_of_memory.
  [[nodiscard]] static result<regex> compile(std::string_view pattern);

  struct code;

 private:
  friend class regex_matcher;
  std::shared_ptr<const code> code_;
};

/// Working memory of matching; one per thread.
class regex_matcher {
 public:
  regex_matcher() noexcept;
  ~regex_matcher();
  regex_matcher(const regex_matcher&) = delete;
  regex_matcher& operator=(const regex_matcher&) = delete;

  struct found {
    bool matched = false;
    std::size_t begin = 0, end = 0;  ///< Byte offsets in the subject.
  };

  /// The leftmost match at or after `from`. `subject` must be valid UTF-8, `from` at a character's start.
  /// Steps and memory are limited in proportion to the subject. Errors: invalid_argument (the text needs more than
  /// that), out_of_memory.
  [[nodiscard]] result<found> search(const regex& expression, std::string_view subject, std::size_t from);

 private:
  struct memory;
  std::unique_ptr<memory> memory_;
};

}  // namespace flywheel::inline v0::text
