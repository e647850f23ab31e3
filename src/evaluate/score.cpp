#include "flywheel/evaluate/score.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::evaluate {

estimate score::mean_nll() const noexcept {
  if (positions == 0) return {std::numeric_limits<double>::quiet_NaN(), 0};
  const auto n = static_cast<double>(positions);
  const double mean = sum / n;
  return {mean, n > 1 ? std::sqrt(std::max(0.0, squares / n - mean * mean) / (n - 1)) : 0};
}

estimate score::perplexity() const noexcept {
  const estimate nll = mean_nll();
  const double value = std::exp(nll.value);
  return {value, value * nll.error};
}

result<score> score_windows(session& sequence, std::span<const window> windows, const control& control) {
  return detail::guarded([&]() -> result<score> {
    score all;
    std::size_t done = 0;
    for (const window& w : windows) {
      if (w.first_scored < 1 || w.first_scored >= w.ids.size())
        return error{errc::invalid_argument, "a window has no token that is scored, or no token before it", "windows"};
      sequence.clear();
      FLYWHEEL_TRY(const std::vector<float> log_p, sequence.score(w.ids, {{}, control.stop}));  // [ids - 1]
      for (std::size_t at = w.first_scored; at < w.ids.size(); ++at) {
        const double nll = -static_cast<double>(log_p[at - 1]);
        all.sum += nll;
        all.squares += nll * nll;
      }
      all.positions += static_cast<std::int64_t>(w.ids.size() - w.first_scored);
      all.tokens += static_cast<std::int64_t>(w.ids.size());
      if (control.progress) control.progress(++done, windows.size(), "scoring");
    }
    return all;
  });
}

}  // namespace flywheel::inline v0::evaluate
