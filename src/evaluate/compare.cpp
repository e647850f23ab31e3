#include "flywheel/evaluate/compare.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "flywheel/detail/try.hpp"
#include "src/evaluate/distribution.hpp"
#include "src/evaluate/row_store.hpp"
#include "src/evaluate/statistics.hpp"

namespace flywheel::inline v0::evaluate {

struct baseline::state {
  explicit state(std::size_t max_memory) : codes(max_memory) {}
  std::vector<window> windows;
  std::size_t n_vocab = 0;
  std::vector<stored_row> rows;  ///< Of every scored position.
  row_store codes;               ///< A piece for every block of rows.
};

namespace {

/// Logits of consecutive scored positions of one window.
struct block_of_rows {
  std::size_t index = 0;            ///< Of the block, and
  std::size_t first = 0;            ///< of its first row, among all windows'.
  std::span<const token_id> nexts;  ///< The tokens that the text has behind these positions.
  std::span<const float> logits;    ///< [nexts, n_vocab]
};

constexpr std::size_t block_bytes = std::size_t{16} << 20;

std::size_t rows_of(const window& w) { return w.ids.size() - w.first_scored; }

/// Runs every window by itself and calls f with blocks of rows, always cut the same way. The head is computed for the
/// scored positions alone.
template <class F>
result<void> each_block(const model& m, std::span<const window> windows, session_options options,
                        const control& control, std::string_view what, F&& f) {
  std::size_t longest = 0, tokens = 0, done = 0;
  for (const window& w : windows) {
    longest = std::max(longest, w.ids.size());
    tokens += w.ids.size();
  }
  if (options.n_ctx == 0) options.n_ctx = static_cast<std::int32_t>(longest);
  FLYWHEEL_TRY(session s, m.new_session(options));
  const auto n_vocab = static_cast<std::size_t>(m.info().n_vocab);
  const std::size_t most = std::clamp<std::size_t>(block_bytes / (n_vocab * sizeof(float)), 1, 256);
  std::vector<float> logits;
  block_of_rows block;
  for (const window& w : windows) {
    s.clear();
    const std::span<const token_id> ids(w.ids);
    const std::size_t before = w.first_scored - 1;
    if (before > 0) FLYWHEEL_CHECK(s.prefill(ids.first(before), {{}, control.stop}));
    const auto row = [&](std::size_t position, std::span<const float> values) -> result<void> {
      logits.insert(logits.end(), values.begin(), values.end());
      const std::size_t held = logits.size() / n_vocab;
      if (held < most && position + 1 < rows_of(w)) return {};
      block.nexts = ids.subspan(w.first_scored + position + 1 - held, held);
      block.logits = logits;
      FLYWHEEL_CHECK(f(block));
      ++block.index;
      block.first += held;
      logits.clear();
      return {};
    };
    FLYWHEEL_CHECK(s.prefill_rows(ids.subspan(before, rows_of(w)), 1, row, {{}, control.stop}));
    done += ids.size();
    if (control.progress) control.progress(done, tokens, what);
  }
  return {};
}

/// f(i) for every row of the block, in parallel; the error names the model when one of them says false.
template <class F>
result<void> each_row(const model& m, const block_of_rows& block, F&& f) {
  std::atomic<bool> usable{true};
  parallel_for(m.context().executor(), block.nexts.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      if (!f(i)) usable.store(false, std::memory_order_relaxed);
  });
  if (usable.load()) return {};
  return error{errc::invalid_argument, "the model's logits are not numbers; its weights are damaged",
               m.info().name.empty() ? "model" : m.info().name};
}

/// What is kept of a position until the end.
struct position_figures {
  double kl, log_p, base_log_p, delta_p;
  bool same_top;
};

estimate perplexity_of(const estimate& mean_nll) {
  const double value = std::exp(mean_nll.value);
  return {value, value * mean_nll.error};
}

comparison summary_of(std::span<const position_figures> all) {
  using figures = position_figures;
  comparison c;
  c.positions = static_cast<std::int64_t>(all.size());
  c.perplexity = perplexity_of(mean_of(all, [](const figures& f) { return -f.log_p; }));
  c.baseline_perplexity = perplexity_of(mean_of(all, [](const figures& f) { return -f.base_log_p; }));
  c.log_ratio = mean_of(all, [](const figures& f) { return f.base_log_p - f.log_p; });
  c.kl = mean_of(all, [](const figures& f) { return f.kl; });
  c.same_top = mean_of(all, [](const figures& f) { return f.same_top ? 1.0 : 0.0; });
  c.mean_delta_p = mean_of(all, [](const figures& f) { return f.delta_p; }).value;
  const estimate square = mean_of(all, [](const figures& f) { return f.delta_p * f.delta_p; });
  c.delta_p_rms.value = std::sqrt(square.value);
  c.delta_p_rms.error = square.value > 0 ? square.error / (2 * c.delta_p_rms.value) : square.error;
  std::vector<double> sorted;
  for (const figures& f : all) sorted.push_back(f.kl);
  std::sort(sorted.begin(), sorted.end());
  c.kl_median = quantile(sorted, 0.5);
  c.kl_p90 = quantile(sorted, 0.9);
  c.kl_p99 = quantile(sorted, 0.99);
  c.kl_max = sorted.back();
  return c;
}

}  // namespace

result<baseline> baseline::compute(const model& base, std::vector<window> windows, const session_options& session,
                                   const control& control, std::size_t max_memory) {
  return detail::guarded([&]() -> result<baseline> {
    if (windows.empty()) return error{errc::invalid_argument, "there is nothing to compare on", "windows"};
    for (const window& w : windows)
      if (w.first_scored < 1 || w.first_scored >= w.ids.size())
        return error{errc::invalid_argument, "a window has no token that is scored, or no token before it", "windows"};
    auto made = std::make_shared<state>(max_memory);
    made->windows = std::move(windows);
    made->n_vocab = static_cast<std::size_t>(base.info().n_vocab);
    std::size_t positions = 0;
    for (const window& w : made->windows) positions += rows_of(w);
    made->rows.resize(positions);
    std::vector<std::uint16_t> codes;
    FLYWHEEL_CHECK(each_block(base, made->windows, session, control, "baseline", [&](const block_of_rows& b) {
      codes.resize(b.logits.size());
      const std::size_t n = made->n_vocab;
      result<void> stored = each_row(base, b, [&](std::size_t i) {
        const auto row = store(b.logits.subspan(i * n, n), b.nexts[i], std::span(codes).subspan(i * n, n));
        if (row) made->rows[b.first + i] = *row;
        return row.has_value();
      });
      return stored ? made->codes.append(codes) : stored;
    }));
    baseline out;
    out.state_ = std::move(made);
    return out;
  });
}

result<comparison> baseline::compare(const model& other, const session_options& session, const control& control) const {
  return detail::guarded([&]() -> result<comparison> {
    if (!state_) return error{errc::invalid_argument, "the baseline is empty", "baseline"};
    if (static_cast<std::size_t>(other.info().n_vocab) != state_->n_vocab)
      return error{errc::invalid_argument,
                   "the model has " + std::to_string(other.info().n_vocab) + " tokens, the baseline " +
                       std::to_string(state_->n_vocab) + "; only models of one vocabulary can be compared",
                   "n_vocab"};
    std::vector<position_figures> all(state_->rows.size());
    std::vector<std::uint16_t> scratch;
    FLYWHEEL_CHECK(
        each_block(other, state_->windows, session, control, "comparing", [&](const block_of_rows& b) -> result<void> {
          FLYWHEEL_TRY(const auto codes, state_->codes.at(b.index, scratch));
          const std::size_t n = state_->n_vocab;
          return each_row(other, b, [&](std::size_t i) {
            const stored_row& row = state_->rows[b.first + i];
            const auto found = evaluate::compare(row, codes.subspan(i * n, n), b.logits.subspan(i * n, n), b.nexts[i]);
            if (found) all[b.first + i] = {found->kl, found->log_p, row.log_p, found->p - row.p, found->top == row.top};
            return found.has_value();
          });
        }));
    return summary_of(all);
  });
}

std::span<const window> baseline::windows() const noexcept {
  return state_ ? std::span<const window>(state_->windows) : std::span<const window>();
}

}  // namespace flywheel::inline v0::evaluate
