// quantize(), quantize_rows() and find_grid() for every scalar format.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <string>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/grid.hpp"
#include "flywheel/quant/quantize.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/tiny_model.hpp"

namespace fw = flywheel;
using fw::dtype;
using fw::errc;
using fw::quant::quantize;
using fw::quant::recipe;
using fw::quant::rounding;

namespace {

constexpr rounding methods[] = {rounding::nearest, rounding::search, rounding::greedy};

/// Relative to the values' root mean square, what search may leave of standard normal numbers in rows of 512 (measured
/// at seed 11, rounded up by about 3%), in order of dtypes.inc; nearest may leave `worse` times as much.
struct bound {
  dtype type;
  double rms;
  double worse;
};
constexpr bound bounds[] = {
    {dtype::f32, 0, 1},
    {dtype::f16, 0.0003, 1},
    {dtype::bf16, 0.0018, 1},
    {dtype::q4_0, 0.085, 1.1},
    {dtype::q4_1, 0.074, 1.2},
    {dtype::q5_0, 0.043, 1.1},
    {dtype::q5_1, 0.037, 1.2},
    {dtype::q8_0, 0.0056, 1.1},
    {dtype::q2_k, 0.26, 1.45},
    {dtype::q3_k, 0.145, 1.15},
    {dtype::q4_k, 0.076, 1.2},
    {dtype::q5_k, 0.038, 1.15},
    {dtype::q6_k, 0.0185, 1.15},
    {dtype::iq4_nl, 0.076, 1.12},
    {dtype::iq4_xs, 0.077, 1.12},
    {dtype::mxfp4, 0.117, 1.25},
    {dtype::nvfp4, 0.092, 1.2},
    {dtype::tq1_0, 0.46, 2},
    {dtype::tq2_0, 0.46, 2},
    {dtype::q1_0, 0.62, 1},
    {dtype::q2_0, 0.36, 1.7},
    {dtype::q8_g128, 0.0068, 1.1},
    {dtype::q4_g128, 0.105, 1.15},
    {dtype::q8_channel, 0.0078, 1.1},
    {dtype::q4_channel, 0.115, 1.3},
};

std::vector<float> normal(std::size_t n, std::uint64_t seed) {
  fw::test::tiny_random random(seed);
  std::vector<float> x(n);
  for (float& one : x) one = random.normal();
  return x;
}

fw::tensor_view matrix(const std::vector<float>& x, std::int64_t cols) {
  return {dtype::f32, {static_cast<std::int64_t>(x.size()) / cols, cols}, reinterpret_cast<const std::byte*>(x.data())};
}

std::vector<float> decoded(const fw::tensor& t) {
  std::vector<float> y(static_cast<std::size_t>(t.dims().elements()));
  REQUIRE(fw::formats::decode(t.view(), y));
  return y;
}

std::vector<float> round_trip(const std::vector<float>& x, std::int64_t cols, const recipe& how) {
  const auto out = quantize(matrix(x, cols), how);
  if (!out) FAIL(out.error().to_string());
  return decoded(*out);
}

/// sqrt(sum w e^2 / sum w x^2); w null: all alike.
double relative_error(const std::vector<float>& x, const std::vector<float>& y, const std::vector<float>* w = nullptr) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double one = w != nullptr ? static_cast<double>((*w)[i % w->size()]) : 1;
    const double e = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    error += one * e * e;
    power += one * static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return std::sqrt(error / power);
}

/// Formats whose groups are points of a codebook: as above, of search; and what an outlier of 1000 may cost, since its
/// neighbours cannot be much smaller than it.
struct codebook_bound {
  dtype type;
  double rms, worse, outlier;
};
constexpr codebook_bound codebook_bounds[] = {
    {dtype::iq2_xxs, 0.333, 1.13, 0.75}, {dtype::iq2_xs, 0.293, 1.1, 0.62}, {dtype::iq3_xxs, 0.181, 1.09, 0.39},
    {dtype::iq1_s, 0.459, 1.33, 0.55},   {dtype::iq3_s, 0.134, 1.09, 0.37}, {dtype::iq2_s, 0.245, 1.12, 0.62},
    {dtype::iq1_m, 0.424, 1.23, 0.42},
};

bool is_codebook(dtype type) {
  return std::any_of(std::begin(codebook_bounds), std::end(codebook_bounds),
                     [type](const codebook_bound& b) { return b.type == type; });
}

bool searches(dtype type) { return fw::quant::find_grid(type) != nullptr || is_codebook(type); }

std::string message(const fw::result<fw::tensor>& failed, errc code) {
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == code);
  return failed.error().message;
}

}  // namespace

TEST_CASE("every scalar format is encoded within its error", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(16 * cols, 11);
  for (const bound& b : bounds) {
    INFO(fw::to_string(b.type));
    REQUIRE(fw::quant::can_quantize(b.type));
    const double nearest = relative_error(x, round_trip(x, cols, {b.type, rounding::nearest, {}}));
    const double search = relative_error(x, round_trip(x, cols, {b.type, rounding::search, {}}));
    const double greedy = relative_error(x, round_trip(x, cols, {b.type, rounding::greedy, {}}));
    CHECK(nearest <= b.rms * b.worse);
    CHECK(search <= b.rms);
    CHECK(search <= nearest);
    CHECK(greedy <= search);
  }
  CHECK_FALSE(fw::quant::can_quantize(dtype::i32));
  CHECK_FALSE(fw::quant::can_quantize(static_cast<dtype>(555)));
}

TEST_CASE("importance moves the error to where it counts less", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(16 * cols, 12);
  std::vector<float> importance(cols);
  fw::test::tiny_random random(13);
  for (float& one : importance) one = std::exp(2 * random.normal()) * 1e-4F;
  for (const bound& b : bounds) {
    if (!searches(b.type)) continue;
    INFO(fw::to_string(b.type));
    const std::vector<float> plain = round_trip(x, cols, {b.type, rounding::search, {}});
    const std::vector<float> aware = round_trip(x, cols, {b.type, rounding::search, importance});
    CHECK(relative_error(x, aware, &importance) < relative_error(x, plain, &importance));
    // No importance anywhere is no importance at all, and its unit does not matter.
    const std::vector<float> none(cols);
    CHECK(round_trip(x, cols, {b.type, rounding::search, none}) == plain);
    std::vector<float> larger = importance;
    for (float& one : larger) one *= 0x1p90F;
    CHECK(round_trip(x, cols, {b.type, rounding::search, larger}) == aware);
  }
}

TEST_CASE("each matrix of a tensor has its importance", "[quant]") {
  constexpr std::int64_t cols = 256, rows = 3, experts = 2;
  const std::vector<float> x = normal(experts * rows * cols, 14);
  std::vector<float> importance(experts * cols, 1);
  for (std::size_t i = 0; i < importance.size(); ++i) importance[i] = i % 7 == i / cols ? 50.0F : 0.1F;
  const fw::tensor_view whole(dtype::f32, {experts, rows, cols}, reinterpret_cast<const std::byte*>(x.data()));
  const auto both = quantize(whole, {dtype::q4_k, rounding::search, importance});
  REQUIRE(both);
  const std::size_t half = both->bytes() / 2;
  for (std::size_t e = 0; e < experts; ++e) {
    const fw::tensor_view one(dtype::f32, {rows, cols}, whole.data + e * rows * cols * sizeof(float));
    const auto alone =
        quantize(one, {dtype::q4_k, rounding::search, std::span<const float>(importance).subspan(e * cols, cols)});
    REQUIRE(alone);
    CHECK(std::memcmp(alone->view().data, both->view().data + e * half, half) == 0);
  }
}

TEST_CASE("rows that are zero, constant or have an outlier survive", "[quant]") {
  constexpr std::int64_t cols = 512;
  for (const bound& b : bounds)
    for (const rounding method : methods) {
      INFO(fw::to_string(b.type) << " method " << static_cast<int>(method));
      const std::vector<float> zero(cols);
      CHECK(round_trip(zero, cols, {b.type, method, {}}) == zero);

      for (const float value : {1.0F, -0.37F, 3e-3F}) {
        const std::vector<float> constant(cols, value);
        CHECK(relative_error(constant, round_trip(constant, cols, {b.type, method, {}})) <=
              (b.type == dtype::mxfp4 ? 0.26 : 0.04));
      }

      std::vector<float> outlier = normal(cols, 15);
      outlier[100] = 1e3F;
      const std::vector<float> y = round_trip(outlier, cols, {b.type, method, {}});
      if (b.type != dtype::q1_0)  // one magnitude for 128 values: nothing fits both
        CHECK(relative_error(outlier, y) <= 0.35);
      for (const float one : y) CHECK(std::isfinite(one));
    }
}

TEST_CASE("extreme magnitudes give finite values", "[quant]") {
  constexpr std::int64_t cols = 512;
  for (const bound& b : bounds) {
    if (b.type == dtype::f16) continue;
    for (const rounding method : methods)
      for (const float scale : {1e-44F, 1e-38F, 1e-20F, 1e-7F, 1e7F, 1e18F, 6e37F}) {
        INFO(fw::to_string(b.type) << " method " << static_cast<int>(method) << " scale " << scale);
        std::vector<float> x = normal(cols, 16);
        for (float& one : x) one *= scale;
        for (const float one : round_trip(x, cols, {b.type, method, {}})) REQUIRE(std::isfinite(one));
      }
  }
}

TEST_CASE("small values are held as well as f16 scales can", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(8 * cols, 22);
  for (const bound& b : bounds) {
    if (!searches(b.type) || b.type == dtype::nvfp4) continue;  // its scales end at 2^-10
    const bool wide_levels = b.type == dtype::iq4_nl || b.type == dtype::iq4_xs;
    for (const rounding method : methods)
      for (const float sigma : {3e-5F, 1e-5F, 1e-6F, 1e-9F}) {
        INFO(fw::to_string(b.type) << " method " << static_cast<int>(method) << " sigma " << sigma);
        std::vector<float> small = x;
        for (float& one : small) one *= sigma;
        const double error = relative_error(small, round_trip(small, cols, {b.type, method, {}}));
        CHECK(error <= 1.0001);  // never worse than zeros
        // Scales are whole 2^-24, and integers above them whole: the levels of IQ4 leave least room below.
        if (sigma == 1e-9F || (b.type == dtype::iq4_xs && method == rounding::nearest && sigma == 1e-6F)) continue;
        const double coarse = 0x1p-24 / static_cast<double>(sigma);
        CHECK(error <= 1.1 * b.rms * (method == rounding::nearest ? b.worse : 1) + (wide_levels ? 5 : 2) * coarse);
      }
  }
}

TEST_CASE("rows whose scale has no inverse become zeros", "[quant]") {
  constexpr std::int64_t cols = 512;
  std::vector<float> x(cols);
  x[3] = -1e-38F, x[70] = 3e-39F;
  for (const dtype type : {dtype::q8_channel, dtype::q4_channel})
    for (const rounding method : methods) {
      const std::vector<float> y = round_trip(x, cols, {type, method, {}});
      for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(y[i] - x[i]) <= std::fabs(x[i]));
    }
}

TEST_CASE("a better method is never worse", "[quant]") {
  constexpr std::int64_t cols = 256;
  std::vector<float> x = normal(300 * cols, 9);
  for (float& one : x) one = 0.02F * std::exp(one);  // far from what scales of K-quants expect
  for (const bound& b : bounds) {
    INFO(fw::to_string(b.type));
    std::vector<float> before;
    for (const rounding method : methods) {
      const std::vector<float> y = round_trip(x, cols, {b.type, method, {}});
      for (std::size_t row = 0; !before.empty() && row < x.size(); row += cols) {
        const auto part = [row](const std::vector<float>& all) {
          return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(row),
                                    all.begin() + static_cast<std::ptrdiff_t>(row + cols));
        };
        REQUIRE(relative_error(part(x), part(y)) <= 1.0001 * relative_error(part(x), part(before)));
      }
      before = y;
    }
  }
}

TEST_CASE("scales of symmetric levels are magnitudes", "[quant]") {
  constexpr std::int64_t cols = 256;
  std::vector<float> x(cols, 0.1F);
  for (std::size_t i = 3; i < x.size(); i += 32) x[i] = -1;
  for (const dtype type : {dtype::q8_0, dtype::q8_g128, dtype::q8_channel, dtype::q1_0, dtype::tq1_0, dtype::tq2_0})
    for (const rounding method : methods) {
      INFO(fw::to_string(type) << " method " << static_cast<int>(method));
      const fw::quant::grid_format* format = fw::quant::find_grid(type);
      REQUIRE(format != nullptr);
      fw::quant::block_grid grid;
      format->fit(x.data(), nullptr, format->block != 0 ? format->block : cols, method, grid);
      CHECK(grid.scale[0] > 0);
    }
}

TEST_CASE("quantizing says what is wrong and where", "[quant]") {
  constexpr std::int64_t cols = 256;
  std::vector<float> x = normal(5 * cols, 17);
  const auto with = [&](std::size_t at, float value, dtype type) {
    std::vector<float> bad = x;
    bad[at] = value;
    return message(quantize(matrix(bad, cols), {type, rounding::search, {}}), errc::invalid_argument);
  };
  CHECK(with(3 * cols + 7, std::numeric_limits<float>::quiet_NaN(), dtype::q4_0) ==
        "the value at [3, 7] is not a number: such a tensor cannot be quantized");
  CHECK(with(2 * cols, -std::numeric_limits<float>::infinity(), dtype::q6_k) ==
        "the value at [2, 0] is infinite: such a tensor cannot be quantized");
  CHECK(with(cols + 1, 1e5F, dtype::f16) == "the value at [1, 1] is 1e+05, beyond the range of F16");
  const auto beyond_bf16 = std::bit_cast<float>(0x7F7F8000U);  // rounds to infinity
  CHECK(with(cols + 2, -beyond_bf16, dtype::bf16).find("[1, 2]") != std::string::npos);
  const std::vector<float> largest(cols, std::nextafter(beyond_bf16, 0.0F));
  for (const float one : round_trip(largest, cols, {dtype::bf16, rounding::search, {}})) CHECK(std::isfinite(one));

  CHECK(message(quantize(matrix(x, 64), {dtype::q4_k, rounding::search, {}}), errc::invalid_argument) ==
        "rows of Q4_K must be a multiple of 256 columns, not 64");
  message(quantize(matrix(x, cols), {dtype::i32, rounding::search, {}}), errc::unsupported);
  message(quantize(matrix(x, cols), {static_cast<dtype>(555), rounding::search, {}}), errc::unsupported);
  std::vector<float> importance(cols - 1, 1);
  CHECK(message(quantize(matrix(x, cols), {dtype::q4_k, rounding::search, importance}), errc::invalid_argument) ==
        "importance must have 256 numbers, one per column, not 255");
  importance.assign(cols, 1);
  importance[9] = -1;
  CHECK(message(quantize(matrix(x, cols), {dtype::q4_k, rounding::search, importance}), errc::invalid_argument)
            .find("[0, 9] is -1") != std::string::npos);
  importance[9] = -1e-9F;
  CHECK(message(quantize(matrix(x, cols), {dtype::q4_k, rounding::search, importance}), errc::invalid_argument)
            .find("[0, 9] is -1e-09") != std::string::npos);
  fw::tensor_view strided = matrix(x, cols);
  strided.strides[0] *= 2;
  message(quantize(strided, {dtype::q4_k, rounding::search, {}}), errc::invalid_argument);

  std::stop_source stop;
  stop.request_stop();
  message(quantize(matrix(x, cols), {dtype::q4_k, rounding::search, {}}, {}, {{}, stop.get_token()}), errc::cancelled);
}

TEST_CASE("workers stop when they are told to", "[quant]") {
  /// Is told to stop when the work begins.
  struct stopping_executor final : fw::executor {
    std::stop_source stop;
    [[nodiscard]] unsigned concurrency() const noexcept override { return 1; }
    [[nodiscard]] bool gang() const noexcept override { return true; }
    void run(unsigned n, fw::function_ref<void(unsigned)> body) override {
      stop.request_stop();
      for (unsigned i = 0; i < n; ++i) body(i);
    }
  };
  const auto pool = std::make_shared<stopping_executor>();
  fw::context_options options;
  options.executor = pool;
  const fw::context ctx = fw::context::create(options).value();
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(100 * cols, 23);
  std::vector<std::byte> out(100 * fw::row_bytes(dtype::q2_k, cols), std::byte{0xA5});
  const auto done =
      fw::quant::quantize_rows(x, cols, 0, {dtype::q2_k, rounding::greedy, {}}, out, ctx, {{}, pool->stop.get_token()});
  REQUIRE_FALSE(done);
  CHECK(done.error().code == errc::cancelled);
  CHECK(std::all_of(out.begin(), out.end(), [](std::byte b) { return b == std::byte{0xA5}; }));
}

TEST_CASE("output may be anywhere", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(3 * cols, 24);
  for (const char* isa : {"", "generic"}) {
    fw::context_options options;
    options.isa = isa;
    const fw::context ctx = fw::context::create(options).value();
    for (const dtype type : {dtype::f16, dtype::bf16, dtype::q4_0, dtype::q8_channel}) {
      const std::size_t bytes = 3 * fw::row_bytes(type, cols);
      std::vector<std::byte> even(bytes), odd(bytes + 1);
      REQUIRE(fw::quant::quantize_rows(x, cols, 0, {type, rounding::search, {}}, even, ctx));
      REQUIRE(fw::quant::quantize_rows(x, cols, 0, {type, rounding::search, {}}, std::span(odd).subspan(1), ctx));
      CHECK(std::equal(even.begin(), even.end(), odd.begin() + 1));
    }
  }
}

TEST_CASE("pieces of a matrix are the matrix", "[quant]") {
  constexpr std::int64_t cols = 512;
  std::vector<float> x = normal(7 * cols, 18);
  const recipe how{dtype::q5_k, rounding::search, {}};
  const auto whole = quantize(matrix(x, cols), how);
  REQUIRE(whole);
  const std::size_t stride = fw::row_bytes(how.type, cols);
  std::vector<std::byte> pieces(7 * stride);
  const std::span<const float> rows(x);
  REQUIRE(fw::quant::quantize_rows(rows.first(3 * cols), cols, 0, how, std::span(pieces).first(3 * stride), {}));
  REQUIRE(fw::quant::quantize_rows(rows.subspan(3 * cols), cols, 3, how, std::span(pieces).subspan(3 * stride), {}));
  CHECK(std::memcmp(pieces.data(), whole->view().data, pieces.size()) == 0);

  x[5 * cols + 2] = std::numeric_limits<float>::quiet_NaN();
  const auto failed =
      fw::quant::quantize_rows(rows.subspan(3 * cols), cols, 3, how, std::span(pieces).subspan(3 * stride), {});
  REQUIRE_FALSE(failed);
  CHECK(failed.error().message.find("[5, 2]") != std::string::npos);
  CHECK_FALSE(fw::quant::quantize_rows(rows.first(cols), cols, 0, how, std::span(pieces).first(1), {}));
}

TEST_CASE("the bytes do not depend on the number of threads, nor on the source's type", "[quant]") {
  constexpr std::int64_t cols = 512;
  std::vector<float> x = normal(200 * cols, 19);
  std::vector<std::uint16_t> halves;
  for (float& one : x) {
    halves.push_back(fw::formats::f32_to_f16(one));
    one = fw::formats::f16_to_f32(halves.back());
  }
  const fw::tensor_view from_f16(dtype::f16, {200, cols}, reinterpret_cast<const std::byte*>(halves.data()));
  for (const dtype type : {dtype::q4_0, dtype::q4_k, dtype::q4_channel, dtype::f16}) {
    std::vector<std::byte> first;
    for (const unsigned threads : {1U, 2U, 5U})
      for (const fw::tensor_view& from : {matrix(x, cols), from_f16}) {
        fw::context_options options;
        options.threads = threads;
        const auto out = quantize(from, {type, rounding::search, {}}, fw::context::create(options).value());
        REQUIRE(out);
        const std::span<const std::byte> bytes(out->view().data, out->bytes());
        if (first.empty()) first.assign(bytes.begin(), bytes.end());
        CHECK(std::equal(bytes.begin(), bytes.end(), first.begin(), first.end()));
      }
  }
}

TEST_CASE("a format's grid is what its decoder computes", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(cols, 20);
  for (const bound& b : bounds) {
    const fw::quant::grid_format* format = fw::quant::find_grid(b.type);
    if (format == nullptr) continue;
    INFO(fw::to_string(b.type));
    CHECK(format->type == b.type);
    const std::int64_t n = format->block != 0 ? format->block : cols;
    const std::int64_t group = format->group != 0 ? format->group : n;
    std::vector<float> weights(static_cast<std::size_t>(n), 1);
    fw::quant::block_grid grid;
    format->fit(x.data(), weights.data(), n, rounding::search, grid);
    // Every code once, then the nearest ones.
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(n));
    std::vector<std::byte> bytes(fw::row_bytes(b.type, n));
    std::vector<float> y(static_cast<std::size_t>(n));
    const auto value = [&](std::size_t i) {
      const std::size_t g = i / static_cast<std::size_t>(group);
      return grid.scale[g] * format->levels[codes[i]] - grid.minimum[g];
    };
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % format->levels.size());
    format->pack(grid, codes.data(), n, bytes.data());
    fw::formats::find_decoder(b.type)(bytes.data(), n, y.data());
    for (std::size_t i = 0; i < codes.size(); ++i) REQUIRE(y[i] == value(i));

    for (std::size_t i = 0; i < codes.size(); ++i) {
      float best = std::numeric_limits<float>::infinity();
      std::uint8_t nearest = 0;
      for (std::size_t c = 0; c < format->levels.size(); ++c) {
        codes[i] = static_cast<std::uint8_t>(c);
        if (const float error = std::fabs(value(i) - x[i]); error < best) best = error, nearest = codes[i];
      }
      codes[i] = nearest;
      y[i] = value(i);
    }
    const std::vector<float> original(x.begin(), x.begin() + n);
    CHECK(relative_error(original, y) <= 1.3 * b.rms);  // a single block
    if (!format->minima)
      for (std::size_t g = 0; g < static_cast<std::size_t>(n / group); ++g) CHECK(grid.minimum[g] == 0);
  }
  CHECK(fw::quant::find_grid(dtype::f16) == nullptr);
  CHECK(fw::quant::find_grid(dtype::iq2_s) == nullptr);
}

TEST_CASE("errors are below the common quantizer's", "[quant]") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance/formats");
  std::ifstream stream(folder / "error_to_beat.json");
  const auto recorded = nlohmann::json::parse(stream);
  int compared = 0;
  for (const auto& entry : recorded.at("entries")) {
    const fw::dtype_info* facts = fw::find_dtype(entry.at("type").get<std::string>());
    REQUIRE(facts != nullptr);
    if (!searches(facts->type)) continue;
    const auto file =
        fw::io::archive::open(folder / ("error_matrix_" + entry.at("matrix").get<std::string>() + ".safetensors"));
    REQUIRE(file);
    const auto* w = file->find("w");
    std::vector<std::byte> stored(static_cast<std::size_t>(w->bytes));
    REQUIRE(file->read(*w, 0, stored));
    const fw::tensor_view from(w->type, w->dims, stored.data());
    std::vector<float> x(static_cast<std::size_t>(w->dims.elements()));
    REQUIRE(fw::formats::decode(from, x));
    std::vector<float> importance(static_cast<std::size_t>(w->dims.cols()));
    REQUIRE(file->read(*file->find("importance"), 0, std::as_writable_bytes(std::span(importance))));

    const bool weighted = entry.at("quantized_with_importance").get<bool>();
    const double to_beat = entry.at(weighted ? "weighted_rel_rmse" : "rel_rmse").get<double>();
    INFO(entry.at("matrix").get<std::string>() << " " << facts->name << (weighted ? " with importance" : ""));
    for (const rounding method : {rounding::search, rounding::greedy}) {
      const auto out = quantize(from, {facts->type, method, weighted ? importance : std::vector<float>{}});
      REQUIRE(out);
      const double error = relative_error(x, decoded(*out), weighted ? &importance : nullptr);
      CHECK(error < to_beat);
    }
    ++compared;
  }
  CHECK(compared >= 66);
}

TEST_CASE("codebook formats are encoded within their error", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(16 * cols, 11);
  std::vector<float> importance(cols);
  fw::test::tiny_random random(13);
  for (float& one : importance) one = std::exp(2 * random.normal());
  for (const codebook_bound& b : codebook_bounds) {
    INFO(fw::to_string(b.type));
    REQUIRE(fw::quant::can_quantize(b.type));
    CHECK(fw::quant::find_grid(b.type) == nullptr);
    CHECK(fw::quant::wants_importance(b.type) == (b.type != dtype::iq3_s));
    const std::vector<float> plain = round_trip(x, cols, {b.type, rounding::search, {}});
    const double nearest = relative_error(x, round_trip(x, cols, {b.type, rounding::nearest, {}}));
    const double search = relative_error(x, plain);
    CHECK(nearest <= b.rms * b.worse);
    CHECK(search <= b.rms);
    CHECK(search < nearest);
    CHECK(relative_error(x, round_trip(x, cols, {b.type, rounding::greedy, {}})) < 1.001 * search);

    const std::vector<float> aware = round_trip(x, cols, {b.type, rounding::search, importance});
    CHECK(relative_error(x, aware, &importance) < 0.97 * relative_error(x, plain, &importance));
    const std::vector<float> none(cols);
    CHECK(round_trip(x, cols, {b.type, rounding::search, none}) == plain);
  }
}

TEST_CASE("codebook formats take any row", "[quant]") {
  constexpr std::int64_t cols = 512;
  for (const codebook_bound& b : codebook_bounds)
    for (const rounding method : methods) {
      INFO(fw::to_string(b.type) << " method " << static_cast<int>(method));
      const recipe how{b.type, method, {}};
      const std::vector<float> zero(cols);
      CHECK(round_trip(zero, cols, how) == zero);
      for (const float value : {1.0F, -0.37F, 3e-3F}) {
        const std::vector<float> constant(cols, value);
        CHECK(relative_error(constant, round_trip(constant, cols, how)) <= (method == rounding::nearest ? 0.5 : 0.01));
      }
      // Zeros and one sub-block that is not; one value alone has an odd sign.
      std::vector<float> lonely(cols);
      lonely[300] = -2;
      const double factor = method == rounding::nearest ? 1.4 : 1;
      CHECK(relative_error(lonely, round_trip(lonely, cols, how)) <= factor * b.outlier);

      std::vector<float> outlier = normal(cols, 15);
      outlier[100] = 1e3F;
      CHECK(relative_error(outlier, round_trip(outlier, cols, how)) <= factor * b.outlier);

      for (const float scale : {1e-44F, 1e-38F, 1e-20F, 2e-6F, 1e7F, 1e18F, 6e37F}) {
        std::vector<float> scaled = normal(cols, 16);
        for (float& one : scaled) one *= scale;
        const std::vector<float> y = round_trip(scaled, cols, how);
        for (const float one : y) REQUIRE(std::isfinite(one));
        if (scale == 2e-6F) CHECK(relative_error(scaled, y) < 0.8);  // scales are the smallest f16 numbers
      }
    }
}

TEST_CASE("codebook formats give the same bytes with any number of threads", "[quant]") {
  constexpr std::int64_t cols = 512;
  const std::vector<float> x = normal(120 * cols, 21);
  for (const codebook_bound& b : codebook_bounds) {
    std::vector<std::byte> first;
    for (const unsigned threads : {1U, 3U}) {
      fw::context_options options;
      options.threads = threads;
      const auto out = quantize(matrix(x, cols), {b.type, rounding::search, {}}, fw::context::create(options).value());
      REQUIRE(out);
      const std::span<const std::byte> bytes(out->view().data, out->bytes());
      if (first.empty()) first.assign(bytes.begin(), bytes.end());
      CHECK(std::equal(bytes.begin(), bytes.end(), first.begin(), first.end()));
    }
  }
}
