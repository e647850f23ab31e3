// One matrix product as a workload: weights packed for a kernel and repeated until no cache holds them all, multiplied
// on all threads of a pool in the way the CPU device cuts work (src/device/cpu/linear.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/executor.hpp"
#include "kernels/matmul/matmul.hpp"
#include "src/measure/timing.hpp"

namespace flywheel::inline v0::measure {

/// y [m, n] = x [m, k] * w [n, k], w one of copies() equal matrices.
class matmul_workload {
 public:
  /// `max_rows`: the largest m. The weights lie in `area` (64-byte aligned), which is filled whole. `area` and `pool`
  /// must outlive the workload. Errors: invalid_argument (area too small for one matrix), out_of_memory.
  [[nodiscard]] static result<matmul_workload> create(const kernels::matmul_kernel& kernel, std::int64_t n,
                                                      std::int64_t k, std::int64_t max_rows, std::span<std::byte> area,
                                                      executor& pool);

  /// `count` products of m rows, each with the next matrix, in one dispatch; a barrier after each as between the steps
  /// of a model. Pools that are no gang get a dispatch per phase.
  void run(std::int64_t m, int count, std::size_t prefetch_bytes = kernels::matmul_args{}.prefetch_bytes);
  /// Packs the weights once more, on all threads.
  void pack();

  /// The largest error of the last run's results, some columns of some rows, against sums in double of the exact
  /// activations and the decoded weights; relative to the root mean square of those. Throws std::bad_alloc.
  [[nodiscard]] double max_error(std::int64_t m) const;

  [[nodiscard]] std::size_t matrix_bytes() const noexcept { return matrix_; }  ///< Packed.
  [[nodiscard]] std::size_t source_bytes() const noexcept { return rows_.size(); }
  [[nodiscard]] std::size_t copies() const noexcept { return copies_; }
  [[nodiscard]] double operations(std::int64_t m) const noexcept {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n_) * static_cast<double>(k_);
  }

 private:
  matmul_workload() = default;
  struct shared;
  void prepare(shared& s, unsigned worker);
  void multiply(shared& s, unsigned worker, const std::byte* matrix);
  void call(shared& s, const std::byte* prepared, const std::byte* matrix, std::int64_t row, std::int64_t row_end,
            std::int64_t panel, std::int64_t panel_end);
  [[nodiscard]] std::int64_t panels() const noexcept { return (n_ + kernel_->panel_cols - 1) / kernel_->panel_cols; }

  const kernels::matmul_kernel* kernel_ = nullptr;
  executor* pool_ = nullptr;
  std::int64_t n_ = 0, k_ = 0;
  std::size_t panel_bytes_ = 0, matrix_ = 0, copies_ = 0, next_ = 0;
  std::size_t prepared_ = 0;  ///< Bytes of prepared activations that each worker owns.
  std::span<std::byte> area_;
  std::vector<std::byte> rows_;  ///< Weights as in a file, [n, k].
  std::vector<float> x_;         ///< [max_rows, k]
  std::vector<float> y_;         ///< [max_rows, n]
  std::uint32_t spins_ = 0;      ///< Asked for once: the system answers in tens of microseconds.
  buffer preparation_;           ///< One for all, then one per worker.
};

/// Seconds per product: the median and extremes of a dozen or more repetitions that take `seconds` or more, up to four
/// times as long if they are slow; at least three. The caller runs it once before, so that everything is there.
[[nodiscard]] spread time_products(matmul_workload& work, std::int64_t m, double seconds,
                                   std::size_t prefetch_bytes = kernels::matmul_args{}.prefetch_bytes);

}  // namespace flywheel::inline v0::measure
