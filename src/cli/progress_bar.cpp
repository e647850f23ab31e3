#include "cli/progress_bar.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cli/output.hpp"
#include "cli/terminal.hpp"

namespace flywheel::cli {

std::string progress_line(std::string_view label, std::uint64_t done, std::uint64_t total, std::string_view note,
                          double seconds, std::size_t columns) {
  std::string tail;
  if (total > 0) {
    const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    tail = decimal(100 * part, 0) + "%";
    tail.insert(0, 4 - std::min<std::size_t>(4, tail.size()), ' ');
    if (!note.empty()) tail += "  " + printable(note);
    if (part > 0.01 && part < 1) tail += "  " + human_seconds(seconds / part * (1 - part)) + " left";
    const std::size_t used = display_width(label) + 2 + 3 + display_width(tail);
    if (used + 8 <= columns) {  // room for a bar worth looking at
      const std::size_t width = std::min<std::size_t>(40, columns - used);
      const auto filled = static_cast<std::size_t>(part * static_cast<double>(width));
      tail = "[" + std::string(filled, '=') + std::string(width - filled, ' ') + "] " + tail;
    }
  } else {
    tail = grouped(static_cast<std::int64_t>(done));
    if (!note.empty()) tail += "  " + printable(note);
    tail += "  " + human_seconds(seconds);
  }
  return shortened(std::string(label) + "  " + tail, columns);
}

progress_bar::progress_bar(std::string label) : label_(printable(label)) {
  const char* term = std::getenv("TERM");
  active_ = is_terminal(stderr) && !(term != nullptr && std::strcmp(term, "dumb") == 0);
}

void progress_bar::update(std::uint64_t done, std::uint64_t total, std::string_view note) {
  if (!active_) return;
  const auto now = clock::now();
  if (now - start_ < std::chrono::milliseconds(500) || now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string line = progress_line(label_, done, total, note, seconds, terminal_columns() - 1);
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void progress_bar::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

progress progress_bar::callback() {
  if (!active_) return {};
  return [this](std::uint64_t done, std::uint64_t total, std::string_view) { update(done, total); };
}

}  // namespace flywheel::cli
