// Finds stop texts in a stream of text and holds back what may be the beginning of one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::detail {

/// The result does not depend on how the text is cut into pieces: the stream ends where the first stop text is
/// completed, and its text ends before that stop text (before the longest, when several are completed at the same
/// place).
class stop_matcher {
 public:
  /// `stops` must not be empty strings.
  explicit stop_matcher(std::vector<std::string> stops) noexcept : stops_(std::move(stops)) {}

  /// Takes the next piece, appends to `out` what is certain not to belong to a stop text. True when a stop text is
  /// complete: nothing more will come. Strong guarantee.
  bool push(std::string_view piece, std::string& out);
  /// Text held back, at the end of a stream without a stop text.
  [[nodiscard]] const std::string& held() const noexcept { return held_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace flywheel::inline v0::detail
