// A bar on stderr for what takes longer than a moment. Does nothing when stderr is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "flywheel/core/progress.hpp"

namespace flywheel::cli {

/// Not thread-safe. Cleared from the screen by clear() or the destructor.
class progress_bar {
 public:
  explicit progress_bar(std::string label);
  ~progress_bar() { clear(); }
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;

  /// Draws, at most ten times a second and not in the first half second. `total` 0: not known. `note` is shown behind
  /// the numbers.
  void update(std::uint64_t done, std::uint64_t total, std::string_view note = {});
  /// Takes the bar from the screen; a later update draws it again.
  void clear();
  /// For the library's long calls; valid as long as the bar.
  [[nodiscard]] flywheel::progress callback();

 private:
  using clock = std::chrono::steady_clock;
  std::string label_;
  bool active_;
  bool drawn_ = false;
  clock::time_point start_ = clock::now();
  clock::time_point last_{};
};

/// The bar's line: "label  [=====>    ]  50%  note  0:12 left", at most `columns` wide. Seconds since the start
/// estimate the rest.
[[nodiscard]] std::string progress_line(std::string_view label, std::uint64_t done, std::uint64_t total,
                                        std::string_view note, double seconds, std::size_t columns);

}  // namespace flywheel::cli
