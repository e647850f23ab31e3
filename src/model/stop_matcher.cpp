#include "src/model/stop_matcher.hpp"

#include <algorithm>

namespace flywheel::inline v0::detail {

bool stop_matcher::push(std::string_view piece, std::string& out) {
  if (stops_.empty()) {
    out.append(piece);
    return false;
  }
  std::string text = held_;
  text.append(piece);
  // The first occurrence of each stop text is the one that ends first. Of all, the one that ends first counts, because
  // a stream of single bytes would stop there; of equals, the longest.
  std::size_t best_end = std::string::npos;
  std::size_t best_begin = 0;
  std::size_t keep = 0;  // bytes at the end that may be the beginning of a stop text
  for (const std::string& stop : stops_) {
    const std::size_t begin = text.find(stop);
    if (begin != std::string::npos) {
      const std::size_t end = begin + stop.size();
      if (end < best_end || (end == best_end && begin < best_begin)) {
        best_end = end;
        best_begin = begin;
      }
    }
    for (std::size_t n = std::min(stop.size() - 1, text.size()); n > keep; --n)
      if (std::string_view(text).ends_with(std::string_view(stop).substr(0, n))) keep = n;
  }
  const bool found = best_end != std::string::npos;
  const std::size_t certain = found ? best_begin : text.size() - keep;
  out.append(text, 0, certain);
  text.erase(0, found ? text.size() : certain);
  held_.swap(text);
  return found;
}

}  // namespace flywheel::inline v0::detail
