#include "kernels/matmul/reference.hpp"

#include "flywheel/formats/formats.hpp"
#include "kernel_test.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::test;
using kernels::matmul_kernel;

namespace {

/// Weights of a format, as rows of the file, packed for a kernel and decoded.
struct weights {
  weights(const matmul_kernel& kernel, std::int64_t n_, std::int64_t k_, random_source& random,
          codes fill = codes::random)
      : n(n_), k(k_), decoded(static_cast<std::size_t>(n_ * k_)), packed(0) {
    const std::size_t row_size = row_bytes(kernel.weight, k);
    stride = row_size + static_cast<std::size_t>(random.below(3));  // rows need not be aligned
    rows.resize(static_cast<std::size_t>(n) * stride + 1);
    for (std::int64_t j = 0; j < n; ++j) {
      const std::vector<std::byte> row = random_row(kernel.weight, k, random, fill);
      std::memcpy(rows.data() + static_cast<std::size_t>(j) * stride, row.data(), row_size);
      formats::find_decoder(kernel.weight)(row.data(), k, decoded.data() + j * k);
    }
    const std::size_t panel_size = kernel.panel_bytes(k);
    const std::int64_t panels = (n + kernel.panel_cols - 1) / kernel.panel_cols;
    REQUIRE(panel_size % 64 == 0);
    packed = aligned_array<std::byte>(static_cast<std::size_t>(panels) * panel_size);
    std::memset(packed.data(), 0xff, static_cast<std::size_t>(panels) * panel_size);
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t first = p * kernel.panel_cols;
      kernel.pack(rows.data() + static_cast<std::size_t>(first) * stride, stride,
                  static_cast<std::int32_t>(std::min<std::int64_t>(kernel.panel_cols, n - first)), k,
                  packed.data() + static_cast<std::size_t>(p) * panel_size);
    }
  }
  std::int64_t n, k;
  std::size_t stride = 0;
  std::vector<std::byte> rows;  // of the file, `stride` bytes apart
  std::vector<float> decoded;   // [n, k]
  aligned_array<std::byte> packed;
};

struct product {
  std::vector<float> y;
  std::int64_t stride;
};

/// Prepares rows in pieces and multiplies in pieces of rows and panels, as threads would.
std::vector<float> multiply(const matmul_kernel& kernel, weights& w, const float* x, std::int64_t x_stride,
                            std::int64_t m, std::int64_t tiles_per_piece, std::int64_t panels_per_piece,
                            kernels::matmul_epilogue epilogue = {}, const float* residual_rows = nullptr) {
  aligned_array<std::byte> prepared(kernel.prepared_bytes(m, w.k));
  const std::int64_t rows = tiles_per_piece * kernel.prepared.tile_rows;
  for (std::int64_t row = 0; row < m; row += rows)
    kernel.prepare(x, x_stride, row, std::min(row + rows, m), w.k, prepared.data());
  const std::int64_t y_stride = w.n + 3;
  std::vector<float> y(static_cast<std::size_t>(m * y_stride), 12345.0f);
  const std::int64_t cols = panels_per_piece * kernel.panel_cols;
  for (std::int64_t row = 0; row < m; row += rows)
    for (std::int64_t col = 0; col < w.n; col += cols) {
      kernels::matmul_args args;
      args.prepared = prepared.data();
      args.row_begin = row;
      args.row_end = std::min(row + rows, m);
      args.panels = w.packed.data() + static_cast<std::size_t>(col / kernel.panel_cols) * kernel.panel_bytes(w.k);
      args.k = w.k;
      args.n = std::min(cols, w.n - col);
      args.y = y.data() + row * y_stride + col;
      args.y_stride = y_stride;
      if (epilogue.bias) args.epilogue.bias = epilogue.bias + col;
      if (residual_rows) {
        args.epilogue.residual = residual_rows + row * epilogue.residual_stride + col;
        args.epilogue.residual_stride = epilogue.residual_stride;
      }
      kernel.run(args);
    }
  std::vector<float> result;
  for (std::int64_t i = 0; i < m; ++i) {
    result.insert(result.end(), y.begin() + i * y_stride, y.begin() + i * y_stride + w.n);
    for (std::int64_t j = w.n; j < y_stride; ++j) REQUIRE(y[static_cast<std::size_t>(i * y_stride + j)] == 12345.0f);
  }
  return result;
}

bool quantizes(const matmul_kernel& kernel) { return kernel.prepared.name.substr(0, 2) == "q8"; }

/// How many numbers of a row share an activation scale and an int32 sum; 0 where sums are of other kinds.
std::int64_t group_of(const matmul_kernel& kernel) {
  return kernel.prepared.name == "q8_row"        ? kernels::longest_channel_row
         : kernel.prepared.name == "q8_group128" ? 128
                                                 : 0;
}

/// Rows of k numbers as the kernel sees them.
std::vector<float> seen(const matmul_kernel& kernel, std::vector<float> x, std::int64_t k) {
  const std::string_view name = kernel.prepared.name;
  if (name.starts_with("q8_block"))
    for (std::size_t i = 0; i < x.size(); i += 32) kernels::reference::quantize_block32(x.data() + i, x.data() + i);
  const auto by_row = name.starts_with("q8_power") ? kernels::reference::quantize_powers
                      : group_of(kernel) != 0      ? kernels::reference::quantize_row
                                                   : nullptr;
  if (name == "q8_group128") k = 128;
  if (by_row)
    for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(k))
      by_row(std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(i), x.end()).data(), k, x.data() + i);
  return x;
}

std::vector<std::int64_t> lengths(dtype weight) {
  const std::int64_t block = info(weight)->block_elements;
  if (block == 1) return {1, 2, 3, 7, 32, 33, 255, 256, 257, 600};
  if (block == 2) return {2, 6, 30, 32, 34, 254, 256, 258, 600};
  if (block == 256) return {256, 512, 1280};
  return {block, 2 * block, 3 * block, 320, 1024};  // all blocks divide 320 or are 128 (checked below)
}

void check(const matmul_kernel& kernel, weights& w, const std::vector<float>& x, std::int64_t m,
           double f32_tolerance = tolerance::matmul_f32) {
  const std::vector<float> y = multiply(kernel, w, x.data(), w.k, m, 1000, 1000);
  const std::vector<float> as_seen = seen(kernel, x, w.k);
  const double tolerance = quantizes(kernel) ? tolerance::matmul_q8 : f32_tolerance;
  double worst = 0;
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < w.n; ++j) {
      const auto [value, magnitude] =
          kernels::reference::dot(as_seen.data() + i * w.k, w.decoded.data() + j * w.k, w.k);
      const double error = std::fabs(static_cast<double>(y[static_cast<std::size_t>(i * w.n + j)]) - value);
      const double relative = error / (magnitude + 1e-30);
      if (!(relative <= worst)) worst = relative;
    }
  CAPTURE(kernel.name, m, w.n, w.k);
  CHECK(worst <= tolerance);
}

template <class Body>
void for_each_kernel(Body body) {
  for (const matmul_kernel& kernel : kernels::all_matmul_kernels()) {
    if (!runnable(kernel.isa) || !formats::find_decoder(kernel.weight)) continue;
    CAPTURE(kernel.name);
    body(kernel);
  }
}

}  // namespace

TEST_CASE("matmul kernels equal their reference over shapes and tails", "[kernels][matmul]") {
  random_source random(1);
  for_each_kernel([&](const matmul_kernel& kernel) {
    for (const std::int64_t k : lengths(kernel.weight)) {
      if (k % info(kernel.weight)->block_elements != 0) continue;
      for (int repeat = 0; repeat < 2; ++repeat) {
        const std::int64_t m = repeat == 0 ? 1 + random.below(7) : 1 + random.below(30);
        const std::int64_t n = 1 + random.below(3 * kernel.panel_cols);
        weights w(kernel, n, k, random);
        check(kernel, w, random.numbers(static_cast<std::size_t>(m * k)), m);
      }
    }
  });
}

TEST_CASE("matmul kernels take zeros, denormals and the largest magnitudes", "[kernels][matmul]") {
  for_each_kernel([&](const matmul_kernel& kernel) {
    random_source random(2);  // the same for every kernel, however many there are
    const std::int64_t k = info(kernel.weight)->block_elements <= 2 ? 288 : 256;
    const std::int64_t m = 7;
    for (const codes fill : {codes::random, codes::all_zero, codes::all_one}) {
      weights w(kernel, 37, k, random, fill);
      std::vector<float> x(static_cast<std::size_t>(m * k));
      check(kernel, w, x, m);  // zeros
      for (float& one : x) one = random.number(1e-40f);
      if (!quantizes(kernel)) check(kernel, w, x, m);
      for (float& one : x) one = random.number(1e-25f);
      check(kernel, w, x, m);
      for (float& one : x) one = random.number(1e30f);
      check(kernel, w, x, m);
      // Every activation at its largest code, of one sign and of alternating signs: sums must not overflow or saturate.
      for (float& one : x) one = 3.0f;
      check(kernel, w, x, m, tolerance::matmul_f32_worst);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = i % 2 ? -3.0f : 3.0f;
      check(kernel, w, x, m, tolerance::matmul_f32_worst);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = -3.0f;
      check(kernel, w, x, m, tolerance::matmul_f32_worst);
    }
  });
}

TEST_CASE("matmul kernels pass on NaN and infinity in their own row alone", "[kernels][matmul]") {
  random_source random(3);
  for_each_kernel([&](const matmul_kernel& kernel) {
    const std::int64_t k = 256;
    weights w(kernel, 20, k, random);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x = random.numbers(8 * k);
      x[3 * k + 100] = bad;
      const std::vector<float> y = multiply(kernel, w, x.data(), k, 8, 100, 100);
      for (std::size_t i = 0; i < 8; ++i)
        for (std::size_t j = 0; j < 20; ++j) {
          const bool weight_is_zero = w.decoded[j * static_cast<std::size_t>(k) + 100] == 0;
          if (i == 3 && !weight_is_zero) CHECK_FALSE(std::isfinite(y[i * 20 + j]));
          if (i != 3) CHECK(std::isfinite(y[i * 20 + j]));
        }
    }
  });
}

TEST_CASE("a row's product does not depend on rows, tiling, ranges or panels around it", "[kernels][matmul]") {
  random_source random(4);
  for_each_kernel([&](const matmul_kernel& kernel) {
    const std::int64_t k = info(kernel.weight)->block_elements == 1   ? 517
                           : info(kernel.weight)->block_elements == 2 ? 518
                                                                      : 768;
    const std::int64_t n = 3 * kernel.panel_cols + 5;
    const std::int64_t m = 223;  // beyond any group of rows
    weights w(kernel, n, k, random);
    const std::vector<float> x = random.numbers(static_cast<std::size_t>(m * k));
    const std::vector<float> all = multiply(kernel, w, x.data(), k, m, 1000, 1000);
    CHECK(multiply(kernel, w, x.data(), k, m, 1, 1) == all);
    CHECK(multiply(kernel, w, x.data(), k, m, 3, 2) == all);
    for (std::int64_t rows = 1; rows <= 7; ++rows) {
      const std::int64_t first = random.below(m - rows);
      const std::vector<float> some = multiply(kernel, w, x.data() + first * k, k, rows, 1000, 1000);
      CHECK(std::equal(some.begin(), some.end(), all.begin() + first * n));
    }
  });
}

TEST_CASE("matmul epilogue adds bias and residual, in place too", "[kernels][matmul]") {
  random_source random(5);
  for_each_kernel([&](const matmul_kernel& kernel) {
    const std::int64_t k = 256, n = kernel.panel_cols + 3, m = 9;
    weights w(kernel, n, k, random);
    const std::vector<float> x = random.numbers(static_cast<std::size_t>(m * k));
    const std::vector<float> bias = random.numbers(static_cast<std::size_t>(n));
    const std::vector<float> residual = random.numbers(static_cast<std::size_t>(m * (n + 2)));
    const std::vector<float> plain = multiply(kernel, w, x.data(), k, m, 100, 100);
    kernels::matmul_epilogue epilogue;
    epilogue.bias = bias.data();
    epilogue.residual_stride = n + 2;
    const std::vector<float> full = multiply(kernel, w, x.data(), k, m, 1, 1, epilogue, residual.data());
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        CHECK(full[static_cast<std::size_t>(i * n + j)] == plain[static_cast<std::size_t>(i * n + j)] +
                                                               bias[static_cast<std::size_t>(j)] +
                                                               residual[static_cast<std::size_t>(i * (n + 2) + j)]);
    // residual == y
    std::vector<float> y(residual.begin(), residual.end());
    aligned_array<std::byte> prepared(kernel.prepared_bytes(m, k));
    kernel.prepare(x.data(), k, 0, m, k, prepared.data());
    kernels::matmul_args args;
    args.prepared = prepared.data();
    args.row_end = m;
    args.panels = w.packed.data();
    args.k = k;
    args.n = n;
    args.y = y.data();
    args.y_stride = n + 2;
    args.epilogue.residual = y.data();
    args.epilogue.residual_stride = n + 2;
    kernel.run(args);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        CHECK(y[static_cast<std::size_t>(i * (n + 2) + j)] ==
              plain[static_cast<std::size_t>(i * n + j)] + residual[static_cast<std::size_t>(i * (n + 2) + j)]);
  });
}

TEST_CASE("packed weights take hardly more bytes than the file's", "[kernels][matmul]") {
  for (const matmul_kernel& kernel : kernels::all_matmul_kernels()) {
    CAPTURE(kernel.name);
    const std::int64_t k = 4096;
    const double packed = static_cast<double>(kernel.panel_bytes(k)) / kernel.panel_cols;
    CHECK(packed <= tolerance::packed_bytes * static_cast<double>(row_bytes(kernel.weight, k)));
  }
}

TEST_CASE("clusters that quantize activations alike give equal bits", "[kernels][matmul]") {
  // Exact integer dots, then the same f32 operations in the same order.
  random_source random(6);
  for (const matmul_kernel& first : kernels::all_matmul_kernels())
    for (const matmul_kernel& second : kernels::all_matmul_kernels()) {
      if (first.weight != second.weight || first.isa >= second.isa || !quantizes(first)) continue;
      if (first.prepared.name != second.prepared.name) continue;
      if (!runnable(first.isa) || !runnable(second.isa)) continue;
      CAPTURE(first.name, second.name);
      random_source one = random, two = random;
      weights w1(first, 50, 512, one), w2(second, 50, 512, two);
      REQUIRE(w1.decoded == w2.decoded);
      const std::vector<float> x = random.numbers(5 * 512);
      CHECK(multiply(first, w1, x.data(), 512, 5, 100, 100) == multiply(second, w2, x.data(), 512, 5, 100, 100));
    }
}

TEST_CASE("products of int32 sums equal the formula of devices bit for bit", "[kernels][matmul]") {
  random_source random(7);
  bool checked = false;
  for_each_kernel([&](const matmul_kernel& kernel) {
    const std::int64_t group = group_of(kernel);
    if (group == 0) return;
    checked = true;
    const bool eight = kernel.weight == dtype::q8_channel || kernel.weight == dtype::q8_g128;
    const bool by_row = info(kernel.weight)->kind == dtype_kind::row;
    for (const std::int64_t k : {128, 256, 384, 1024}) {
      for (std::int64_t m = 1; m <= 13; ++m) {
        const std::int64_t n = 1 + random.below(2 * kernel.panel_cols);
        weights w(kernel, n, k, random);
        // The codes and scales that the file's rows stand for.
        std::vector<std::int8_t> codes(static_cast<std::size_t>(n * k));
        std::vector<float> scales;
        for (std::int64_t j = 0; j < n; ++j) {
          const auto* row =
              reinterpret_cast<const std::uint8_t*>(w.rows.data()) + static_cast<std::size_t>(j) * w.stride;
          for (std::int64_t i = 0; i < k; ++i) {
            const std::int64_t at = i % 128;
            const std::uint8_t* const block = row + i / 128 * (eight ? 130 : 66);
            const auto nibble = [](int byte, bool high) { return (high ? byte >> 4 : byte & 15) - 8; };
            const int code = by_row  ? eight ? static_cast<std::int8_t>(row[4 + i]) : nibble(row[4 + i / 2], i % 2 == 1)
                              : eight ? static_cast<std::int8_t>(block[2 + at])
                                     : nibble(block[2 + at % 64], at >= 64);
            codes[static_cast<std::size_t>(j * k + i)] = static_cast<std::int8_t>(code);
            if (by_row && i == 0) std::memcpy(&scales.emplace_back(), row, 4);
            if (!by_row && at == 0)
              scales.push_back(formats::f16_to_f32(static_cast<std::uint16_t>(block[0] | block[1] << 8)));
          }
        }
        const std::size_t groups = scales.size() / static_cast<std::size_t>(n);
        std::vector<float> x = random.numbers(static_cast<std::size_t>(m * k));
        const auto row = [&](std::int64_t r) { return x.begin() + r * k; };
        for (std::int64_t r = 1; r < m; ++r) {  // one of these in one group, or in all of the row
          const auto end = random.below(2) ? row(r) + 128 : row(r) + k;
          const float bad[] = {0, 1e-31F, NAN, INFINITY, 1e-20F, 1e25F};
          if (r % 2 == 0) std::fill(row(r), end, bad[random.below(6)]);
          if (r % 4 == 1) x[static_cast<std::size_t>(r * k + random.below(k))] *= 1000;
        }
        const std::vector<float> y = multiply(kernel, w, x.data(), k, m, 1000, 1000);
        std::size_t wrong = 0;
        for (std::int64_t i = 0; i < m; ++i)
          for (std::int64_t j = 0; j < n; ++j) {
            const float expected = kernels::reference::grouped_dot(
                x.data() + i * k, codes.data() + j * k, scales.data() + static_cast<std::size_t>(j) * groups, k, group);
            const float got = y[static_cast<std::size_t>(i * n + j)];
            wrong += std::isnan(expected) ? !std::isnan(got)
                                          : std::bit_cast<std::uint32_t>(got) != std::bit_cast<std::uint32_t>(expected);
          }
        CAPTURE(m, n, k);
        CHECK(wrong == 0);
      }
    }
  });
  if (runnable_clusters().size() > 1) CHECK(checked);
}
