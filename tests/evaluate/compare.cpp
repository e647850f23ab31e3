// Windows of a text, distributions in 16 bits, and models against models: with formulas written down again.
#include "flywheel/evaluate/compare.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>

#include "flywheel/model/convert.hpp"
#include "src/evaluate/distribution.hpp"
#include "src/evaluate/row_store.hpp"
#include "src/evaluate/statistics.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l) - top);
  std::vector<double> out;
  for (const float l : logits) out.push_back(static_cast<double>(l) - top - std::log(sum));
  return out;
}

double kl_of(const std::vector<float>& q, const std::vector<float>& p) {
  const std::vector<double> a = log_softmax(q), b = log_softmax(p);
  double kl = 0;
  for (std::size_t i = 0; i < a.size(); ++i) kl += std::exp(a[i]) * (a[i] - b[i]);
  return kl;
}

std::vector<float> random_logits(std::size_t n, float spread, std::uint64_t seed) {
  tiny_random random(seed);
  std::vector<float> out(n);
  for (float& l : out) l = spread * random.normal();
  return out;
}

model open_model(const std::filesystem::path& path, unsigned threads = 1) {
  context_options options;
  options.threads = threads;
  model_options with;
  with.context = context::create(options).value();
  return model::open(path, with).value();
}

const char* const story =
    "the hell and the hello went on in the red hall where all the men sat and then the other one came in and told "
    "them that the rain had ended and that there was nothing left to do but to go home and rest until the morning";

}  // namespace

TEST_CASE("A distribution in 16 bits diverges from itself by less than 1e-8, from another as it should") {
  for (const std::size_t n : {5UL, 320UL, 2048UL, 40000UL})
    for (const float spread : {0.0F, 1.0F, 4.0F, 12.0F}) {
      INFO(n << " tokens, spread " << spread);
      const std::vector<float> q = random_logits(n, spread, n);
      std::vector<float> p = q;
      const std::vector<float> noise = random_logits(n, 0.05F, n + 1);
      for (std::size_t i = 0; i < n; ++i) p[i] += noise[i];
      std::vector<std::uint16_t> codes(n);
      const auto next = static_cast<token_id>(n / 2);
      const auto row = evaluate::store(q, next, codes);
      REQUIRE(row);
      const std::vector<double> log_q = log_softmax(q), log_p = log_softmax(p);
      CHECK(row->log_p == Approx(log_q[n / 2]).margin(1e-9));
      CHECK(row->p == Approx(std::exp(log_q[n / 2])).margin(1e-12));
      CHECK(row->top == std::max_element(q.begin(), q.end()) - q.begin());

      const auto same = evaluate::compare(*row, codes, q, next);
      REQUIRE(same);
      CHECK(same->kl >= 0);
      CHECK(same->kl < 1e-8);
      CHECK(same->log_p == row->log_p);
      const auto other = evaluate::compare(*row, codes, p, next);
      REQUIRE(other);
      // Of one row; the steps' errors have both signs and cancel over many.
      CHECK(std::abs(other->kl - kl_of(q, p)) < 1e-4 * std::sqrt(kl_of(q, p)) + 1e-8);
      CHECK(other->log_p == Approx(log_p[n / 2]).margin(1e-9));
      CHECK(other->top == std::max_element(p.begin(), p.end()) - p.begin());
    }
}

TEST_CASE("Logits that are not numbers are not compared, hopeless tokens are") {
  std::vector<float> logits = random_logits(100, 2, 3);
  std::vector<std::uint16_t> codes(100);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity}) {
    std::vector<float> broken = logits;
    broken[70] = bad;
    CHECK(!evaluate::store(broken, 0, codes));
    const auto row = evaluate::store(logits, 0, codes);
    CHECK(!evaluate::compare(*row, codes, broken, 0));
  }
  CHECK(!evaluate::store(std::vector<float>(100, -infinity), 0, codes));
  logits[3] = -infinity;
  logits[4] = -1e30F;
  const auto row = evaluate::store(logits, 0, codes);
  REQUIRE(row);
  const auto same = evaluate::compare(*row, codes, logits, 0);
  REQUIRE(same);
  CHECK(same->kl < 1e-8);
}

TEST_CASE("Pieces beyond the memory limit come back from the file") {
  for (const std::size_t limit : {std::size_t{0}, std::size_t{2500}, std::size_t{1} << 20}) {
    evaluate::row_store store(limit);
    std::vector<std::vector<std::uint16_t>> pieces;
    for (std::size_t i = 0; i < 5; ++i) {
      pieces.emplace_back(500 + i);
      std::iota(pieces.back().begin(), pieces.back().end(), static_cast<std::uint16_t>(1000 * i));
      store.append(pieces.back()).value();
    }
    std::vector<std::uint16_t> scratch;
    for (const std::size_t i : {4UL, 0UL, 2UL, 2UL, 3UL, 1UL}) {
      const auto got = store.at(i, scratch).value();
      CHECK(std::equal(got.begin(), got.end(), pieces[i].begin(), pieces[i].end()));
    }
  }
}

TEST_CASE("Means have standard errors, quantiles lie between neighbours") {
  const std::vector<double> values = {1, 2, 3, 4, 10};
  const evaluate::estimate mean = evaluate::mean_of(std::span<const double>(values), [](double v) { return v; });
  CHECK(mean.value == Approx(4));
  CHECK(mean.error == Approx(std::sqrt((9.0 + 4 + 1 + 0 + 36) / 5 / 4)));
  CHECK(evaluate::quantile(values, 0.5) == 3);
  CHECK(evaluate::quantile(values, 0.9) == Approx(0.4 * 4 + 0.6 * 10));
  CHECK(evaluate::quantile(values, 1) == 10);
  CHECK(evaluate::quantile(std::vector<double>{7}, 0.99) == 7);
}

TEST_CASE("Windows are cut as both protocols say") {
  const temp_folder folder;
  write_tiny_model(folder / "m.gguf", tiny_model{});
  const model m = open_model(folder / "m.gguf");
  const text::tokenizer& vocabulary = m.tokenizer();
  const token_id bos = vocabulary.special().bos;
  const std::vector<token_id> plain = vocabulary.encode(story, {.add_special = false}).value();
  const std::vector<token_id> with_bos = vocabulary.encode(story, {.add_special = true}).value();
  REQUIRE(with_bos.size() == plain.size() + 1);

  const auto whole =
      evaluate::cut_windows(vocabulary, story, {.ctx = 16, .protocol = evaluate::protocol::windows}).value();
  std::vector<token_id> again;
  for (const evaluate::window& w : whole) {
    CHECK(w.ids.front() == bos);
    CHECK(w.ids.size() <= 16);
    CHECK(w.first_scored == 1);
    CHECK(w.text_tokens == w.ids.size() - 1);
    again.insert(again.end(), w.ids.begin() + 1, w.ids.end());
  }
  CHECK(again == plain);

  const auto half = evaluate::cut_windows(vocabulary, story, {.ctx = 16}).value();
  CHECK(half.size() == with_bos.size() / 16);
  for (std::size_t i = 0; i < half.size(); ++i) {
    std::vector<token_id> want(with_bos.begin() + static_cast<std::ptrdiff_t>(16 * i),
                               with_bos.begin() + static_cast<std::ptrdiff_t>(16 * i + 16));
    want[0] = bos;
    CHECK(half[i].ids == want);
    CHECK(half[i].first_scored == 9);
  }
  CHECK(evaluate::cut_windows(vocabulary, story, {.ctx = 16, .max_windows = 2}).value().size() == 2);
  for (std::int64_t most = 1; most <= static_cast<std::int64_t>(half.size()); ++most) {
    const auto some =
        evaluate::cut_windows(vocabulary, story, {.ctx = 16, .max_windows = most, .spread = true}).value();
    REQUIRE(some.size() == static_cast<std::size_t>(most));
    for (std::size_t i = 0; i < some.size(); ++i) CHECK(some[i].ids == half[i * half.size() / some.size()].ids);
  }
  CHECK(evaluate::cut_windows(vocabulary, "", {.ctx = 16}).error().code == errc::invalid_argument);
  CHECK(evaluate::cut_windows(vocabulary, story, {.ctx = 3}).error().where == "ctx");
  CHECK(evaluate::cut_windows(text::tokenizer{}, story, {}).error().code == errc::unsupported);
}

TEST_CASE("Models are compared by what their logits say, whatever the threads and the memory") {
  const temp_folder folder;
  tiny_model facts;
  facts.layers = 2;
  facts.weights = dtype::f32;
  write_tiny_model(folder / "base.gguf", facts);
  convert_options rounded;
  rounded.type = dtype::q4_0;
  (void)convert(io::archive::open(folder / "base.gguf").value(), folder / "q4.gguf", rounded).value();
  const model base = open_model(folder / "base.gguf"), other = open_model(folder / "q4.gguf");
  const auto windows = evaluate::cut_windows(base.tokenizer(), story, {.ctx = 24}).value();
  REQUIRE(windows.size() > 2);

  // The same, row by row.
  double kl = 0, kl_square = 0, nll = 0, base_nll = 0, square = 0, same = 0;
  std::vector<double> all;
  for (const evaluate::window& w : windows) {
    const auto rows_of = [&](const model& m) {
      std::vector<std::vector<float>> rows;
      session s = m.new_session().value();
      s.prefill_rows(w.ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
         rows.emplace_back(row.begin(), row.end());
         return {};
       }).value();
      return rows;
    };
    const auto q = rows_of(base), p = rows_of(other);
    for (std::size_t at = w.first_scored; at < w.ids.size(); ++at) {
      const auto next = static_cast<std::size_t>(w.ids[at]);
      const auto log_q = log_softmax(q[at - 1]), log_p = log_softmax(p[at - 1]);
      all.push_back(kl_of(q[at - 1], p[at - 1]));
      kl += all.back();
      kl_square += all.back() * all.back();
      base_nll -= log_q[next];
      nll -= log_p[next];
      square += std::pow(std::exp(log_p[next]) - std::exp(log_q[next]), 2);
      same += std::max_element(log_q.begin(), log_q.end()) - log_q.begin() ==
              std::max_element(log_p.begin(), log_p.end()) - log_p.begin();
    }
  }
  const auto n = static_cast<double>(all.size());
  std::sort(all.begin(), all.end());

  const auto baseline = evaluate::baseline::compute(base, windows).value();
  const evaluate::comparison c = baseline.compare(other).value();
  CHECK(c.positions == static_cast<std::int64_t>(all.size()));
  CHECK(c.kl.value > 1e-5);
  CHECK(c.kl.value == Approx(kl / n).epsilon(1e-3));
  CHECK(c.kl.error == Approx(std::sqrt((kl_square / n - kl * kl / n / n) / (n - 1))).epsilon(1e-2));
  CHECK(c.kl_max == Approx(all.back()).epsilon(2e-3));
  CHECK(c.kl_median <= c.kl_p90);
  CHECK(c.kl_p90 <= c.kl_p99);
  CHECK(c.kl_p99 <= c.kl_max);
  CHECK(c.perplexity.value == Approx(std::exp(nll / n)).epsilon(1e-6));
  CHECK(c.baseline_perplexity.value == Approx(std::exp(base_nll / n)).epsilon(1e-6));
  CHECK(c.log_ratio.value == Approx((nll - base_nll) / n).margin(1e-7));
  CHECK(c.same_top.value == Approx(same / n));
  CHECK(c.delta_p_rms.value == Approx(std::sqrt(square / n)).epsilon(1e-5));

  const evaluate::comparison itself = baseline.compare(base).value();
  CHECK(itself.kl.value < 1e-8);
  CHECK(itself.same_top.value == 1);
  CHECK(itself.delta_p_rms.value == 0);
  CHECK(itself.log_ratio.value == 0);

  // From a file, and with other threads: the same bits.
  const auto spilled = evaluate::baseline::compute(open_model(folder / "base.gguf", 3), windows, {}, {}, 0).value();
  const evaluate::comparison again = spilled.compare(open_model(folder / "q4.gguf", 2)).value();
  CHECK(again.kl.value == c.kl.value);
  CHECK(again.kl_p99 == c.kl_p99);
  CHECK(again.perplexity.value == c.perplexity.value);
}

TEST_CASE("What cannot be compared is refused, and a comparison can be cancelled") {
  const temp_folder folder;
  write_tiny_model(folder / "a.gguf", tiny_model{});
  write_tiny_model(folder / "b.gguf", {.vocab = 330});
  const model a = open_model(folder / "a.gguf"), b = open_model(folder / "b.gguf");
  const auto windows = evaluate::cut_windows(a.tokenizer(), story, {.ctx = 24}).value();
  const auto baseline = evaluate::baseline::compute(a, windows).value();
  CHECK(baseline.windows().size() == windows.size());
  const auto refused = baseline.compare(b);
  REQUIRE(!refused);
  CHECK(refused.error().code == errc::invalid_argument);
  CHECK(refused.error().message.find("330") != std::string::npos);
  CHECK(evaluate::baseline{}.compare(a).error().code == errc::invalid_argument);
  CHECK(evaluate::baseline::compute(a, {}).error().code == errc::invalid_argument);
  CHECK(evaluate::baseline::compute(a, {{{1, 2, 3}, 3, 3}}).error().where == "windows");
  CHECK(evaluate::baseline::compute(a, {{{1, 2, 3}, 0, 3}}).error().where == "windows");
  std::stop_source stop;
  stop.request_stop();
  CHECK(evaluate::baseline::compute(a, windows, {}, {{}, stop.get_token()}).error().code == errc::cancelled);
  CHECK(baseline.compare(a, {}, {{}, stop.get_token()}).error().code == errc::cancelled);
}

TEST_CASE("Rounding to Q8_0 costs the trained model what it costs elsewhere") {
  FLYWHEEL_REQUIRE_SHARED(path, "family/models/tiny-base/gguf/tiny-base-f16.gguf");
  FLYWHEEL_REQUIRE_SHARED(texts, "family/text");
  const temp_folder folder;
  convert_options rounded;
  rounded.type = dtype::q8_0;
  (void)convert(io::archive::open(path).value(), folder / "q8.gguf", rounded).value();
  const model base = open_model(path), other = open_model(folder / "q8.gguf");
  // Mean KL of another engine's Q8_0, first 100 windows of 256 tokens; 8-bit activations add to it here.
  const std::pair<const char*, double> known[] = {
      {"general", 0.00020}, {"legal", 0.00027}, {"tutoring", 0.00012}, {"telemetry", 0.00006}};
  for (const auto& [name, kl] : known) {
    INFO(name);
    std::ifstream in(texts / name / "eval.txt", std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(in), {});
    const auto windows = evaluate::cut_windows(base.tokenizer(), text, {.ctx = 256, .max_windows = 20}).value();
    const evaluate::comparison c = evaluate::baseline::compute(base, windows).value().compare(other).value();
    CHECK(c.kl.value > kl / 2);
    CHECK(c.kl.value < kl * 2);
    CHECK(c.same_top.value > 0.98);
  }
}
