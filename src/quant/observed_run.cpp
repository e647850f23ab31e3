#include "src/quant/observed_run.hpp"

#include <span>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "flywheel/evaluate/compare.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::inline v0::quant {

result<std::uint32_t> run_observed(const io::archive& file, const observed_run& run) {
  model_options with;
  with.context = run.ctx;
  with.control.stop = run.control.stop;
  with.observer = run.observer;
  FLYWHEEL_TRY(const model opened, model::open(file, with));
  evaluate::text_options cut;
  cut.ctx = run.chunk;
  cut.max_windows = run.max_chunks;
  cut.spread = true;
  FLYWHEEL_TRY(const std::vector<evaluate::window> windows, evaluate::cut_windows(opened.tokenizer(), run.text, cut));
  session_options sequence;
  sequence.n_ctx = run.chunk;
  FLYWHEEL_TRY(session s, opened.new_session(sequence));
  std::uint32_t done = 0;
  for (const evaluate::window& w : windows) {
    s.clear();
    // All logits: of the last layer only rows are computed whose logits are asked for.
    const auto nothing = [](std::size_t, std::span<const float>) -> result<void> { return {}; };
    FLYWHEEL_CHECK(s.prefill_rows(w.ids, 1, nothing, {{}, run.control.stop}));
    ++done;
    if (run.control.progress) run.control.progress(done, windows.size(), run.what);
  }
  return done;
}

}  // namespace flywheel::inline v0::quant
