// Products of f32 matrices and a triangular factorization, on the CPU's f32 kernel.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/result.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::quant {

[[nodiscard]] constexpr std::size_t as_size(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

/// body(slot, task) for every task < tasks. Calls with one slot (< pool.concurrency()) follow each other, so that a
/// slot can own scratch memory.
template <class Body>
void for_tasks(executor& pool, std::int64_t tasks, const Body& body) {
  std::atomic<std::int64_t> next{0};
  const auto slots = static_cast<unsigned>(std::min<std::int64_t>(pool.concurrency(), tasks));
  pool.run(slots, [&](unsigned slot) {
    for (std::int64_t task = next++; task < tasks; task = next++) body(slot, task);
  });
}

/// y = x w^T (+ residual): x [m, k] prepared, w [n, k] as panels of panel_cols() of its rows. For f32 a panel is w's
/// transpose, [k, panel_cols()], and prepared rows are tiles [k, tile_rows()].
class f32_product {
 public:
  explicit f32_product(const context& ctx)
      : kernel_(*kernels::find_matmul(kernels::find_cluster(ctx.isa().selected), dtype::f32)) {}

  [[nodiscard]] std::int64_t panel_cols() const noexcept { return kernel_.panel_cols; }
  [[nodiscard]] std::int64_t tile_rows() const noexcept { return kernel_.prepared.tile_rows; }
  [[nodiscard]] std::size_t prepared_bytes(std::int64_t m, std::int64_t k) const {
    return kernel_.prepared_bytes(m, k);
  }
  void prepare(const float* x, std::int64_t stride, std::int64_t m, std::int64_t k, std::byte* out) const {
    kernel_.prepare(x, stride, 0, m, k, out);
  }
  /// The same of x^T [k, m], whose rows are `stride` floats apart; and panels of w^T [k, n].
  void prepare_columns(const float* x, std::int64_t stride, std::int64_t m, std::int64_t k, std::byte* out) const;
  void pack_columns(const float* w, std::int64_t stride, std::int64_t n, std::int64_t k, std::byte* out) const;
  [[nodiscard]] std::int64_t panels(std::int64_t n) const noexcept { return (n + panel_cols() - 1) / panel_cols(); }
  [[nodiscard]] std::size_t panel_bytes(std::int64_t k) const { return kernel_.panel_bytes(k); }
  /// Rows of w, `stride` floats apart, times `sign`.
  void pack(const float* w, std::int64_t stride, std::int64_t n, std::int64_t k, float sign, std::byte* out) const;
  /// `residual` may be y, or null.
  void run(const std::byte* prepared, std::int64_t m, const std::byte* panels, std::int64_t n, std::int64_t k, float* y,
           std::int64_t y_stride, const float* residual, std::int64_t residual_stride) const;

 private:
  const kernels::matmul_kernel& kernel_;
};

/// a = R R^T with R upper triangular. `a` [n, n] is symmetric, only its upper triangle is looked at, which becomes R;
/// below the diagonal it then holds nothing of use. False: not positive definite (to f32's precision). The same bits
/// for any number of threads. Error: out_of_memory.
[[nodiscard]] result<bool> factor_upper(std::span<float> a, std::int64_t n, const context& ctx);

}  // namespace flywheel::inline v0::quant
