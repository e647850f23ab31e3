#include "src/quant/products.hpp"

#include <cmath>
#include <vector>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::quant {

void f32_product::pack(const float* w, std::int64_t stride, std::int64_t n, std::int64_t k, float sign,
                       std::byte* out) const {
  for (std::int64_t row = 0; row < n; row += panel_cols(), out += panel_bytes(k)) {
    const std::int64_t cols = std::min(panel_cols(), n - row);
    kernel_.pack(reinterpret_cast<const std::byte*>(w + row * stride), as_size(stride) * sizeof(float),
                 static_cast<std::int32_t>(cols), k, out);
    auto* const values = reinterpret_cast<float*>(out);
    if (sign != 1)
      for (std::int64_t i = 0; i < k * panel_cols(); ++i) values[i] *= sign;
  }
}

void f32_product::prepare_columns(const float* x, std::int64_t stride, std::int64_t m, std::int64_t k,
                                  std::byte* out) const {
  auto* to = reinterpret_cast<float*>(out);
  for (std::int64_t row = 0; row < m; row += tile_rows()) {
    const std::int64_t rows = std::min(tile_rows(), m - row);
    for (std::int64_t i = 0; i < k; ++i, to += rows)
      for (std::int64_t r = 0; r < rows; ++r) to[r] = x[i * stride + row + r];
  }
}

void f32_product::pack_columns(const float* w, std::int64_t stride, std::int64_t n, std::int64_t k,
                               std::byte* out) const {
  for (std::int64_t row = 0; row < n; row += panel_cols(), out += panel_bytes(k)) {
    auto* const to = reinterpret_cast<float*>(out);
    const std::int64_t cols = std::min(panel_cols(), n - row);
    for (std::int64_t i = 0; i < k; ++i) {
      std::copy_n(w + i * stride + row, cols, to + i * panel_cols());
      std::fill(to + i * panel_cols() + cols, to + (i + 1) * panel_cols(), 0.0F);
    }
  }
}

void f32_product::run(const std::byte* prepared, std::int64_t m, const std::byte* panels, std::int64_t n,
                      std::int64_t k, float* y, std::int64_t y_stride, const float* residual,
                      std::int64_t residual_stride) const {
  kernels::matmul_args args;
  args.prepared = prepared;
  args.row_end = m;
  args.panels = panels;
  args.k = k;
  args.n = n;
  args.y = y;
  args.y_stride = y_stride;
  args.epilogue.residual = residual;
  args.epilogue.residual_stride = residual_stride;
  kernel_.run(args);
}

namespace {

constexpr std::int64_t factor_block = 128;
constexpr std::int64_t factor_rows = 96;  ///< Of a task; a multiple of every tile_rows.
/// Pivots below this part of their diagonal element are rounding errors.
constexpr double smallest_pivot = 4e-7;

/// R of a block a [n, n] (rows `stride` apart) and its inverse [n, n], in double; false: not positive definite.
/// `diagonal`: what the diagonal was before anything was taken off.
bool factor_block_upper(float* a, std::int64_t stride, std::int64_t n, const float* diagonal, std::vector<double>& r,
                        std::vector<float>& inverse) {
  r.assign(as_size(n * n), 0);
  for (std::int64_t c = n - 1; c >= 0; --c) {
    const double* const row_c = r.data() + c * n;
    for (std::int64_t i = c; i >= 0; --i) {
      double* const row_i = r.data() + i * n;
      double sum = static_cast<double>(a[i * stride + c]);
      for (std::int64_t j = c + 1; j < n; ++j) sum -= row_i[j] * row_c[j];
      if (i < c) {
        row_i[c] = sum / row_c[c];
      } else {
        if (!(sum > smallest_pivot * static_cast<double>(diagonal[c]))) return false;
        row_i[c] = std::sqrt(sum);
      }
    }
  }
  // Column by column: R x = e_c from the bottom up.
  inverse.assign(as_size(n * n), 0);
  std::vector<double> x(as_size(n));
  for (std::int64_t c = 0; c < n; ++c)
    for (std::int64_t i = c; i >= 0; --i) {
      const double* const row = r.data() + i * n;
      double sum = i == c ? 1 : 0;
      for (std::int64_t j = i + 1; j <= c; ++j) sum -= row[j] * x[as_size(j)];
      x[as_size(i)] = sum / row[i];
      inverse[as_size(i * n + c)] = static_cast<float>(x[as_size(i)]);
    }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i; j < n; ++j) a[i * stride + j] = static_cast<float>(r[as_size(i * n + j)]);
  return true;
}

}  // namespace

result<bool> factor_upper(std::span<float> a, std::int64_t n, const context& ctx) {
  return detail::guarded([&]() -> result<bool> {
    const f32_product product(ctx);
    executor& pool = ctx.executor();
    const std::size_t scratch_bytes = product.prepared_bytes(factor_rows, n);
    FLYWHEEL_TRY(buffer scratch, buffer::allocate(scratch_bytes * pool.concurrency(), ctx.memory()));
    const auto block_panels = as_size(product.panels(factor_block));
    FLYWHEEL_TRY(buffer panels, buffer::allocate(product.panel_bytes(n) * block_panels, ctx.memory()));
    FLYWHEEL_TRY(buffer solver, buffer::allocate(product.panel_bytes(factor_block) * block_panels, ctx.memory()));
    std::vector<float> diagonal(as_size(n)), inverse;
    for (std::int64_t i = 0; i < n; ++i) diagonal[as_size(i)] = a[as_size(i * n + i)];
    std::vector<double> r;

    // Columns begin .. end - 1 of R, from the last to the first: what the columns after them explain is taken off.
    for (std::int64_t end = n; end > 0;) {
      const std::int64_t begin = (end - 1) / factor_block * factor_block, count = end - begin, done = n - end;
      float* const column = a.data() + begin;
      if (done > 0) product.pack(a.data() + begin * n + end, n, count, done, -1, panels.mutable_data());
      const auto take_off = [&](std::int64_t row, std::int64_t rows, std::byte* own) {
        if (done == 0) return;
        product.prepare(a.data() + row * n + end, n, rows, done, own);
        float* const y = column + row * n;
        product.run(own, rows, panels.data(), count, done, y, n, y, n);
      };
      for_tasks(pool, (count + factor_rows - 1) / factor_rows, [&](unsigned slot, std::int64_t task) {
        const std::int64_t row = begin + task * factor_rows;
        take_off(row, std::min(factor_rows, end - row), scratch.mutable_data() + slot * scratch_bytes);
      });
      if (!factor_block_upper(column + begin * n, n, count, diagonal.data() + begin, r, inverse)) return false;
      product.pack(inverse.data(), count, count, count, 1, solver.mutable_data());
      for_tasks(pool, (begin + factor_rows - 1) / factor_rows, [&](unsigned slot, std::int64_t task) {
        const std::int64_t row = task * factor_rows, rows = std::min(factor_rows, begin - row);
        std::byte* const own = scratch.mutable_data() + slot * scratch_bytes;
        take_off(row, rows, own);
        float* const y = column + row * n;
        product.prepare(y, n, rows, count, own);
        product.run(own, rows, solver.data(), count, count, y, n, nullptr, 0);
      });
      end = begin;
    }
    return true;
  });
}

}  // namespace flywheel::inline v0::quant
