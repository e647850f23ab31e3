// Scores of windows: sums that add up.
#include "flywheel/evaluate/score.hpp"

#include <cmath>

#include "flywheel/model/model.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("Scores are those of a session, and add up") {
  const temp_folder folder;
  write_tiny_model(folder / "tiny.gguf");
  const model tiny = model::open(folder / "tiny.gguf").value();
  session s = tiny.new_session().value();
  const std::vector<evaluate::window> windows = {{{1, 5, 7, 9, 11}, 1, 4}, {{1, 20, 30, 40}, 3, 3}};
  const evaluate::score all = evaluate::score_windows(s, windows).value();
  CHECK(all.positions == 5);
  CHECK(all.tokens == 9);
  s.clear();
  const auto first = s.score(windows[0].ids).value();
  s.clear();
  const auto second = s.score(windows[1].ids).value();
  double sum = -static_cast<double>(second[2]), squares = sum * sum;
  for (const float p : first) sum -= static_cast<double>(p), squares += static_cast<double>(p) * static_cast<double>(p);
  CHECK(all.sum == Approx(sum));
  CHECK(all.mean_nll().value == Approx(sum / 5));
  CHECK(all.mean_nll().error == Approx(std::sqrt((squares / 5 - sum * sum / 25) / 4)));
  CHECK(all.perplexity().value == Approx(std::exp(sum / 5)));
  CHECK(all.perplexity().error == Approx(std::exp(sum / 5) * all.mean_nll().error));
  evaluate::score parts = evaluate::score_windows(s, std::span(windows).first(1)).value();
  parts += evaluate::score_windows(s, std::span(windows).last(1)).value();
  CHECK(parts.sum == Approx(all.sum));
  CHECK(parts.positions == 5);
  CHECK(std::isnan(evaluate::score{}.mean_nll().value));
  const std::vector<evaluate::window> empty = {{{1, 2}, 2, 1}};
  CHECK(evaluate::score_windows(s, empty).error().code == errc::invalid_argument);
}
