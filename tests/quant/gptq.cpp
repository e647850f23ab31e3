// Rounding with error feedback: what it minimises, on which grids, and when it refuses.
#include "flywheel/quant/gptq.hpp"

#include <cmath>
#include <limits>
#include <random>

#include "flywheel/formats/formats.hpp"
#include "flywheel/quant/grid.hpp"
#include "flywheel/quant/quantize.hpp"
#include "src/quant/error_feedback.hpp"
#include "support/catch.hpp"

using namespace flywheel;
using namespace flywheel::quant;

namespace {

context team_with(unsigned threads, std::string isa = {}) {
  context_options options;
  options.threads = threads;
  options.isa = std::move(isa);
  return context::create(std::move(options)).value();
}

std::vector<float> normal_numbers(std::size_t n, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<float> x(n);
  for (float& v : x) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(engine()) / 4294967296.0;
    v = static_cast<float>(sum);
  }
  return x;
}

/// Second moments of rows that share directions, as activations of neighbours do.
gram_matrix correlated(std::int64_t k, std::int64_t rows, std::uint32_t seed) {
  const std::int64_t rank = k / 4;
  const std::vector<float> mix = normal_numbers(static_cast<std::size_t>(rank * k), seed);
  const std::vector<float> inner = normal_numbers(static_cast<std::size_t>(rows * rank), seed + 1);
  const std::vector<float> noise = normal_numbers(static_cast<std::size_t>(rows * k), seed + 2);
  std::vector<double> sums(static_cast<std::size_t>(k * k));
  std::vector<double> x(static_cast<std::size_t>(k));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < k; ++c) {
      double v = 0.3 * static_cast<double>(noise[static_cast<std::size_t>(r * k + c)]);
      for (std::int64_t i = 0; i < rank; ++i)
        v += static_cast<double>(inner[static_cast<std::size_t>(r * rank + i)]) *
             static_cast<double>(mix[static_cast<std::size_t>(i * k + c)]);
      x[static_cast<std::size_t>(c)] = v;
    }
    for (std::int64_t a = 0; a < k; ++a)
      for (std::int64_t b = 0; b < k; ++b)
        sums[static_cast<std::size_t>(a * k + b)] += x[static_cast<std::size_t>(a)] * x[static_cast<std::size_t>(b)];
  }
  gram_matrix gram;
  gram.n = k;
  gram.sums.assign(sums.begin(), sums.end());
  gram.rows = static_cast<double>(rows);
  return gram;
}

gram_matrix identity(std::int64_t k) {
  gram_matrix gram;
  gram.n = k;
  gram.rows = 1;
  gram.sums.assign(static_cast<std::size_t>(k * k), 0);
  for (std::int64_t i = 0; i < k; ++i) gram.sums[static_cast<std::size_t>(i * k + i)] = 1;
  return gram;
}

tensor_view matrix(const std::vector<float>& w, std::int64_t n, std::int64_t k) {
  return {dtype::f32, {n, k}, reinterpret_cast<const std::byte*>(w.data())};
}

std::vector<float> floats_of(const tensor& t) {
  std::vector<float> out(static_cast<std::size_t>(t.dims().elements()));
  formats::decode(t.view(), out).value();
  return out;
}

/// Sum over rows of e H e^T.
double output_error(const std::vector<float>& w, const std::vector<float>& q, const gram_matrix& h) {
  double sum = 0;
  for (std::size_t row = 0; row < w.size(); row += static_cast<std::size_t>(h.n))
    for (std::size_t a = 0; a < static_cast<std::size_t>(h.n); ++a) {
      double inner = 0;
      for (std::size_t b = 0; b < static_cast<std::size_t>(h.n); ++b)
        inner += static_cast<double>(h.sums[a * static_cast<std::size_t>(h.n) + b]) *
                 (static_cast<double>(w[row + b]) - static_cast<double>(q[row + b]));
      sum += inner * (static_cast<double>(w[row + a]) - static_cast<double>(q[row + a]));
    }
  return sum;
}

std::vector<dtype> grid_types() {
  std::vector<dtype> types;
  for (const dtype_info& facts : dtype_table)
    if (find_grid(facts.type)) types.push_back(facts.type);
  return types;
}

/// Whole numbers from -8 to 7 times a scale of 1, stored as Q4_0.
const float whole_levels[] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
const grid_format whole_numbers = [] {
  grid_format f;
  f.levels = whole_levels;
  f.fit = [](const float*, const float*, std::int64_t, rounding, block_grid& grid) { grid.scale[0] = 1; };
  f.pack = [](const block_grid&, const std::uint8_t* codes, std::int64_t, std::byte* out) {
    out[0] = std::byte{0x00};
    out[1] = std::byte{0x3c};  // 1
    for (int j = 0; j < 16; ++j) out[2 + j] = static_cast<std::byte>(codes[j] | codes[j + 16] << 4);
  };
  return f;
}();

}  // namespace

TEST_CASE("error feedback does by hand what the formula says", "[quant][gptq]") {
  // Two columns of 32 are active, with H = [[1, 0.5], [0.5, 1]]: R = [[sqrt(0.75), 0.5], [0, 1]].
  constexpr std::int64_t k = 32;
  gram_matrix h = identity(k);
  h.sums[1] = h.sums[k] = 0.5F;
  std::vector<float> w(k, 0);
  w[0] = 2.4F;   // rounds to 2: e = 0.4, so the target of column 1 is
  w[1] = 1.35F;  // 1.35 + 0.4 * 0.5 / 1 = 1.55, which rounds to 2, where 1.35 alone would round to 1
  gptq_options options;
  options.damping = 0;
  options.sweeps = 0;
  for (const bool ordered : {false, true}) {
    options.act_order = ordered;
    const auto q = floats_of(round_with_feedback(matrix(w, 1, k), h, whole_numbers, options, team_with(1), {}).value());
    CHECK(q[0] == 2);
    CHECK(q[1] == 2);
    CHECK(std::vector<float>(q.begin() + 2, q.end()) == std::vector<float>(30, 0.0F));
  }
  // Column 1 first when it is the more active: 1.35 rounds to 1, e = 0.35, and 2.4 + 0.35 * 0.5 = 2.575 rounds to 3.
  h.sums[k + 1] = 1.0001F;
  const auto q = floats_of(round_with_feedback(matrix(w, 1, k), h, whole_numbers, options, team_with(1), {}).value());
  CHECK(q[0] == 3);
  CHECK(q[1] == 1);
}

TEST_CASE("coordinate descent makes each code the best for the others", "[quant][gptq]") {
  constexpr std::int64_t k = 64, n = 40;
  const gram_matrix h = correlated(k, 200, 3);
  std::vector<float> w = normal_numbers(n * k, 4);
  for (float& x : w) x *= 2;
  gptq_options options;
  options.sweeps = 0;
  const auto once =
      floats_of(round_with_feedback(matrix(w, n, k), h, whole_numbers, options, team_with(1), {}).value());
  options.sweeps = 30;
  auto q = floats_of(round_with_feedback(matrix(w, n, k), h, whole_numbers, options, team_with(1), {}).value());
  CHECK(output_error(w, q, h) < output_error(w, once, h));
  // After so many sweeps nothing moves: no single step makes a row better.
  const double best = output_error(w, q, h);
  for (std::size_t i = 0; i < 3 * k; ++i)
    for (const float step : {-1.0F, 1.0F}) {
      if (q[i] + step < -8 || q[i] + step > 7) continue;
      q[i] += step;
      CHECK(output_error(w, q, h) > best - 1e-6 * best);
      q[i] -= step;
    }
}

TEST_CASE("error feedback lowers the output's error on every grid", "[quant][gptq]") {
  constexpr std::int64_t k = 512, n = 72;
  const gram_matrix h = correlated(k, 1500, 1);
  const std::vector<float> w = normal_numbers(n * k, 2);
  std::vector<float> importance;
  for (std::int64_t i = 0; i < k; ++i) importance.push_back(h.sums[static_cast<std::size_t>(i * k + i)]);
  REQUIRE(grid_types().size() >= 18);
  const context ctx = team_with(2);
  for (const dtype type : grid_types()) {
    CAPTURE(to_string(type));
    const double plain =
        output_error(w, floats_of(quantize(matrix(w, n, k), {type, rounding::search, importance}, ctx).value()), h);
    for (const bool ordered : {false, true}) {
      gptq_options options;
      options.act_order = ordered;
      const tensor q = gptq(matrix(w, n, k), h, type, options, ctx).value();
      CHECK(q.type() == type);
      CHECK(q.dims() == shape{n, k});
      CHECK(output_error(w, floats_of(q), h) < 0.8 * plain);
    }
  }
}

TEST_CASE("without correlation error feedback is rounding", "[quant][gptq]") {
  constexpr std::int64_t k = 256, n = 33;
  const std::vector<float> w = normal_numbers(n * k, 5);
  const context ctx = team_with(1);
  gptq_options options;
  options.damping = 0;
  for (const dtype type : {dtype::q4_0, dtype::q8_0, dtype::iq4_nl, dtype::q4_g128, dtype::q4_channel}) {
    CAPTURE(to_string(type));
    // On the same grids, every weight is at its nearest level: no other code of its block does better.
    const auto q = floats_of(gptq(matrix(w, n, k), identity(k), type, options, ctx).value());
    const std::vector<float> ones(k, 1);
    const auto plain = floats_of(quantize(matrix(w, n, k), {type, rounding::search, ones}, ctx).value());
    CHECK(output_error(w, q, identity(k)) <= 1.02 * output_error(w, plain, identity(k)));
    CHECK(output_error(w, q, identity(k)) >= 0.98 * output_error(w, plain, identity(k)));
  }
}

TEST_CASE("columns that are never active are rounded by themselves", "[quant][gptq]") {
  constexpr std::int64_t k = 256, n = 8;
  gram_matrix h = correlated(k, 600, 6);
  for (const std::int64_t dead : {0, 77, 255})
    for (std::int64_t i = 0; i < k; ++i)
      h.sums[static_cast<std::size_t>(dead * k + i)] = h.sums[static_cast<std::size_t>(i * k + dead)] = 0;
  std::vector<float> w = normal_numbers(n * k, 7);
  const context ctx = team_with(1);
  const auto q = floats_of(gptq(matrix(w, n, k), h, dtype::q8_0, {}, ctx).value());
  for (std::size_t row = 0; row < n; ++row)
    for (const std::size_t dead : {0U, 77U, 255U}) CHECK(std::fabs(q[row * k + dead] - w[row * k + dead]) < 0.03);
  // And do not touch others: what they hold makes no difference where it does not move their block's scale.
  gram_matrix none = identity(k);
  std::fill(none.sums.begin(), none.sums.end(), 0.0F);
  const auto blind = floats_of(gptq(matrix(w, n, k), none, dtype::q8_0, {}, ctx).value());
  for (std::size_t i = 0; i < w.size(); ++i) CHECK(std::fabs(blind[i] - w[i]) < 0.03);
}

TEST_CASE("damping grows until singular second moments can be factored", "[quant][gptq]") {
  constexpr std::int64_t k = 256, n = 16;
  const gram_matrix h = correlated(k, 20, 8);  // rank 20
  const std::vector<float> w = normal_numbers(n * k, 9);
  const context ctx = team_with(1);
  gptq_options options;
  options.damping = 0;
  const auto q = floats_of(gptq(matrix(w, n, k), h, dtype::q4_0, options, ctx).value());
  const auto plain = floats_of(quantize(matrix(w, n, k), {dtype::q4_0, rounding::search}, ctx).value());
  CHECK(output_error(w, q, h) < 0.1 * output_error(w, plain, h));

  gram_matrix negative = identity(k);
  for (std::int64_t i = 1; i < k; ++i)
    negative.sums[static_cast<std::size_t>(i * k)] = negative.sums[static_cast<std::size_t>(i)] = -1e6F;
  const auto refused = gptq(matrix(w, n, k), negative, dtype::q4_0, options, ctx);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::invalid_argument);
  CHECK(refused.error().message.find("positive semidefinite") != std::string::npos);
}

TEST_CASE("error feedback gives the same bytes for any number of threads", "[quant][gptq]") {
  constexpr std::int64_t k = 384, n = 300;
  const gram_matrix h = correlated(k, 800, 10);
  const std::vector<float> w = normal_numbers(n * k, 11);
  for (const dtype type : {dtype::q4_0, dtype::q4_g128, dtype::q8_channel}) {
    const tensor one = gptq(matrix(w, n, k), h, type, {}, team_with(1)).value();
    for (const unsigned threads : {2U, 5U}) {
      const tensor more = gptq(matrix(w, n, k), h, type, {}, team_with(threads)).value();
      CHECK(std::equal(one.view().data, one.view().data + one.bytes(), more.view().data));
    }
  }
}

TEST_CASE("every cluster rounds with error feedback", "[quant][gptq]") {
  constexpr std::int64_t k = 256, n = 50;
  const gram_matrix h = correlated(k, 500, 12);
  const std::vector<float> w = normal_numbers(n * k, 13);
  const auto generic = floats_of(gptq(matrix(w, n, k), h, dtype::iq4_nl, {}, team_with(1, "generic")).value());
  const double expected = output_error(w, generic, h);
  const isa_report report = detect_isa().value();
  for (const isa_status& cluster : report.clusters) {
    if (!cluster.built || !cluster.detected) continue;
    CAPTURE(cluster.name);
    for (const dtype type : {dtype::iq4_nl, dtype::q4_0}) {
      const auto q = floats_of(gptq(matrix(w, n, k), h, type, {}, team_with(1, std::string(cluster.name))).value());
      CHECK(output_error(w, q, h) < 1.5 * expected);
    }
    const auto q =
        floats_of(gptq(matrix(w, n, k), h, dtype::iq4_nl, {}, team_with(1, std::string(cluster.name))).value());
    CHECK(output_error(w, q, h) < 1.05 * expected);
    CHECK(output_error(w, q, h) > 0.95 * expected);
  }
}

TEST_CASE("error feedback refuses what it cannot do, and says where", "[quant][gptq]") {
  constexpr std::int64_t k = 256, n = 70;
  std::vector<float> w = normal_numbers(n * k, 14);
  const context ctx = team_with(2);
  const auto message = [&](const tensor_view& from, const gram_matrix& h, dtype type) {
    const auto r = gptq(from, h, type, {}, ctx);
    REQUIRE_FALSE(r);
    return std::string(to_string(r.error().code)) + " " + r.error().to_string();
  };
  const gram_matrix h = identity(k);
  CHECK(message(matrix(w, n, k), h, dtype::f16).find("unsupported") == 0);
  CHECK(message(matrix(w, n, k), identity(k + 1), dtype::q4_0).find("257") != std::string::npos);
  CHECK(message(matrix(w, 2 * n, k / 2), identity(k / 2), dtype::q4_k).find("whole blocks of 256") !=
        std::string::npos);
  gram_matrix bad = h;
  bad.sums[5 * k + 9] = std::numeric_limits<float>::quiet_NaN();
  CHECK(message(matrix(w, n, k), bad, dtype::q4_0).find("[5, 9]") != std::string::npos);
  w[67 * k + 3] = std::numeric_limits<float>::infinity();
  w[69 * k + 1] = std::numeric_limits<float>::quiet_NaN();
  CHECK(message(matrix(w, n, k), h, dtype::q4_0).find("[67, 3]") != std::string::npos);

  // Experts with gaps between their rows; and which of them is wrong.
  const std::vector<float> wide = normal_numbers(2 * 3 * 2 * k, 15);
  tensor_moments two;
  two.matrices = {h, h};
  for (gram_matrix& own : two.matrices) own.rows = k;
  tensor_view apart(dtype::f32, {2, 3, k}, reinterpret_cast<const std::byte*>(wide.data()));
  gptq(apart, two, dtype::q4_0, {}, ctx).value();
  two.matrices[1].sums[7] = std::numeric_limits<float>::infinity();
  CHECK(gptq(apart, two, dtype::q4_0, {}, ctx).error().message.find("matrix 1: second moment [0, 7]") == 0);
  two.matrices[1] = two.matrices[0];
  apart.strides[0] *= 2;
  REQUIRE_FALSE(apart.dense());
  const auto gaps = gptq(apart, two, dtype::q4_0, {}, ctx);
  REQUIRE_FALSE(gaps);
  CHECK(gaps.error().code == errc::invalid_argument);

  std::stop_source stop;
  stop.request_stop();
  control cancelled;
  cancelled.stop = stop.get_token();
  w[67 * k + 3] = w[69 * k + 1] = 0;
  const auto stopped = gptq(matrix(w, n, k), h, dtype::q4_0, {}, ctx, cancelled);
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == errc::cancelled);
}
