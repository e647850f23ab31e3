// What the terminal can do, and Ctrl-C.
#pragma once

#include <cstdio>
#include <stop_token>

namespace flywheel::cli {

/// True when the stream is a terminal.
[[nodiscard]] bool is_terminal(std::FILE* stream) noexcept;
/// A terminal that takes colours; NO_COLOR (no-color.org) and TERM=dumb turn them off.
[[nodiscard]] bool takes_colour(std::FILE* stream) noexcept;
/// Columns of the terminal behind stderr; 80 when it does not say.
[[nodiscard]] unsigned terminal_columns() noexcept;
/// Turns Ctrl-C into a stop token while it exists; one at a time. The second Ctrl-C ends the program at once.
class interrupt {
 public:
  interrupt();
  ~interrupt();
  interrupt(const interrupt&) = delete;
  interrupt& operator=(const interrupt&) = delete;

  /// Stopped by the next Ctrl-C.
  [[nodiscard]] std::stop_token token() const;
  [[nodiscard]] bool requested() const noexcept { return token().stop_requested(); }
  /// Waits until stdin, a terminal, has a line; false when Ctrl-C came first.
  [[nodiscard]] bool wait_for_line() const;
  /// Forgets a Ctrl-C: token() is a new one afterwards.
  void reset();
};

/// While it exists Ctrl-C ends a blocked read (EINTR); otherwise reads and writes go on, so that no output is lost.
class interruptible_reading {
 public:
  interruptible_reading();
  ~interruptible_reading();
  interruptible_reading(const interruptible_reading&) = delete;
  interruptible_reading& operator=(const interruptible_reading&) = delete;
};

}  // namespace flywheel::cli
