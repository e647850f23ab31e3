// Second moments: sums of x x^T of exactly what goes into each weight.
#include "flywheel/quant/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "flywheel/evaluate/compare.hpp"
#include "flywheel/model/model.hpp"
#include "src/quant/moments_observer.hpp"
#include "support/catch.hpp"
#include "support/recording_observer.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::quant;
using namespace flywheel::test;

namespace {

context team(unsigned threads) {
  context_options options;
  options.threads = threads;
  return context::create(std::move(options)).value();
}

const std::string sentences = [] {
  std::string s;
  for (int i = 0; i < 60; ++i) s += "hello the and " + std::to_string(i * i) + " in th er";
  return s;
}();

/// x x^T summed in double from rows [rows, n].
std::vector<double> direct(const std::vector<float>& rows, std::int64_t n) {
  std::vector<double> sums(static_cast<std::size_t>(n * n), 0);
  for (std::size_t r = 0; r < rows.size(); r += static_cast<std::size_t>(n))
    for (std::size_t a = 0; a < static_cast<std::size_t>(n); ++a)
      for (std::size_t b = 0; b < static_cast<std::size_t>(n); ++b)
        sums[a * static_cast<std::size_t>(n) + b] +=
            static_cast<double>(rows[r + a]) * static_cast<double>(rows[r + b]);
  return sums;
}

double relative_distance(const gram_matrix& gram, const std::vector<double>& expected) {
  double worst = 0, peak = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(gram.sums[i]) - expected[i]));
    peak = std::max(peak, std::fabs(expected[i]));
  }
  return worst / peak;
}

}  // namespace

TEST_CASE("Second moments are those of the rows that go into the weights", "[quant][calibration]") {
  for (const std::int32_t experts : {0, 4}) {
    tiny_model m;
    m.layers = 2;
    m.ffn = 224;  // more than a tile
    m.experts = experts;
    const temp_folder folder;
    write_tiny_model(folder / "m.gguf", m);
    const io::archive file = io::archive::open(folder / "m.gguf").value();

    calibration_options options;
    options.chunk = 64;
    options.context = team(3);
    const moments_by_tensor moments = collect_moments(file, sentences, options).value();

    const auto seen = std::make_shared<recording_observer>();
    model_options with;
    with.context = team(1);
    with.observer = seen;
    const model opened = model::open(file, with).value();
    evaluate::text_options cut;
    cut.ctx = 64;
    const auto windows = evaluate::cut_windows(opened.tokenizer(), sentences, cut).value();
    for (const evaluate::window& w : windows) {
      session s = opened.new_session().value();
      s.prefill_rows(w.ids, 1, [](std::size_t, std::span<const float>) -> result<void> { return {}; }).value();
    }
    std::size_t tensors = 0;
    for (std::uint32_t point = 0; point < seen->points.size(); ++point) {
      const device::observation_point& p = seen->points[point];
      CAPTURE(p.weights.front());
      const tensor_moments& have = *moments.at(p.weights.front());
      for (const std::string& name : p.weights) CHECK(moments.at(name) == moments.at(p.weights.front()));
      tensors += p.weights.size();
      REQUIRE(have.matrices.size() == static_cast<std::size_t>(std::max<std::int64_t>(1, p.n_experts)));
      std::vector<float> everything;
      for (std::size_t e = 0; e < have.matrices.size(); ++e) {
        const std::vector<float>& rows = seen->rows[{point, static_cast<std::int64_t>(e)}];
        everything.insert(everything.end(), rows.begin(), rows.end());
        const gram_matrix& gram = have.matrices[e];
        CHECK(gram.n == p.cols);
        CHECK(gram.rows == static_cast<double>(rows.size() / static_cast<std::size_t>(p.cols)));
        std::vector<double> expected = direct(rows, p.cols);
        if (p.weights.front() == "token_embd.weight") {  // looked up, too: the mean of the diagonal is added to it
          double mean = 0;
          for (std::int64_t i = 0; i < p.cols; ++i) mean += expected[static_cast<std::size_t>(i * p.cols + i)];
          for (std::int64_t i = 0; i < p.cols; ++i)
            expected[static_cast<std::size_t>(i * p.cols + i)] += mean / static_cast<double>(p.cols);
        }
        if (!rows.empty()) CHECK(relative_distance(gram, expected) < 1e-5);
        for (std::int64_t a = 0; a < gram.n; ++a)
          for (std::int64_t b = 0; b < a; ++b)
            REQUIRE(gram.sums[static_cast<std::size_t>(a * gram.n + b)] ==
                    gram.sums[static_cast<std::size_t>(b * gram.n + a)]);
        const bool enough = gram.rows >= static_cast<double>(gram.n);
        CHECK(&have.of(e) == (have.matrices.size() == 1 || enough ? &gram : &have.all));
      }
      if (have.matrices.size() > 1) CHECK(relative_distance(have.all, direct(everything, p.cols)) < 1e-5);
    }
    CHECK(moments.size() == tensors);

    // The same bits with other threads.
    options.context = team(1);
    const moments_by_tensor alone = collect_moments(file, sentences, options).value();
    for (const auto& [name, one] : alone)
      for (std::size_t e = 0; e < one->matrices.size(); ++e)
        CHECK(one->matrices[e].sums == moments.at(name)->matrices[e].sums);
  }
}

TEST_CASE("Second moments are collected where they are wanted, in passes that fit", "[quant][calibration]") {
  tiny_model m;
  m.layers = 3;
  const temp_folder folder;
  write_tiny_model(folder / "m.gguf", m);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  // 32 x 32, 32 x 32, 32 x 32, 64 x 64 floats a layer, and the head's 32 x 32.
  const auto passes = plan_passes(file, 4 * (3 * 32 * 32 + 64 * 64)).value();
  REQUIRE(passes.size() == 4);
  CHECK(passes[0].size() == 7);
  CHECK(passes[3] == std::vector<std::string>{"token_embd.weight"});
  CHECK(plan_passes(file, 0).value().size() == 13);
  CHECK(plan_passes(file, 1 << 30).value().size() == 1);

  calibration_options options;
  options.chunk = 64;
  options.wants = [&](std::string_view name) {
    return std::find(passes[1].begin(), passes[1].end(), name) != passes[1].end();
  };
  const moments_by_tensor some = collect_moments(file, sentences, options).value();
  CHECK(some.size() == 7);
  CHECK(some.contains("blk.1.ffn_down.weight"));
  CHECK(collect_moments(file, "hello", options).error().code == errc::invalid_argument);
}

TEST_CASE("Experts are rounded with moments of their own", "[quant][calibration]") {
  tiny_model m;
  m.ffn = 32;
  m.experts = 4;
  const temp_folder folder;
  write_tiny_model(folder / "m.gguf", m);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  calibration_options options;
  options.chunk = 64;
  const moments_by_tensor moments = collect_moments(file, sentences, options).value();
  const std::string name = "blk.0.ffn_up_exps.weight";
  const io::tensor_info* tensor = file.find(name);
  const tensor_view w = file.view(*tensor).value();
  const auto all = gptq(w, *moments.at(name), dtype::q4_0).value();
  for (std::int64_t e = 0; e < 4; ++e) {
    const tensor_view one(w.type, {32, 32}, w.row(e * 32));
    const auto alone = gptq(one, moments.at(name)->of(static_cast<std::size_t>(e)), dtype::q4_0).value();
    CHECK(std::equal(alone.view().data, alone.view().data + alone.bytes(), all.view().row(e * 32)));
  }
  CHECK(gptq(tensor_view(w.type, {32, 32}, w.data), *moments.at(name), dtype::q4_0).error().code ==
        errc::invalid_argument);
}
