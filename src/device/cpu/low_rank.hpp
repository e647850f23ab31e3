// What adapters add to the products of one step: u = A x for every change, then y += B u.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {

/// Calls f(segment, first row, behind the last) for the part of every segment that lies in rows [begin, end).
template <class F>
void for_segments(std::span<const adapter_segment> segments, std::int64_t begin, std::int64_t end, F&& f) {
  for (const adapter_segment& s : segments)
    if (s.begin < end && begin < s.end) f(s, std::max(begin, s.begin), std::min(end, s.end));
}

class adapted_products {
 public:
  adapted_products(const kernels::kernel_set& kernels, operand x) : kernels_(kernels), x_(x) {}
  void append(std::uint32_t slot) { slots_.push_back(slot); }

  /// Whether adapters of the run change any of the products.
  [[nodiscard]] bool any(const run_state& s) const;
  /// Whether they scale product i.
  [[nodiscard]] bool gains(const run_state& s, std::size_t i) const;

  /// How many numbers have to be projected for one row of each segment, all together.
  [[nodiscard]] std::int64_t projections(const run_state& s) const;
  /// Asks for the memory that project() of the same range will read; add() after fetch_columns() alike. Both come once
  /// and in short pieces, which the processor does not foresee.
  void fetch(const run_state& s, std::int64_t begin, std::int64_t end) const;
  void fetch_columns(const run_state& s, std::size_t i, std::int64_t row, std::int64_t row_end, std::int64_t first,
                     std::int64_t cols) const;
  /// Of these, [begin, end), for all rows of their segments. `x`: the step's rows, normed.
  void project(const run_state& s, const float* x, std::int64_t begin, std::int64_t end) const;
  /// All of them for rows [row, row_end).
  void project_rows(const run_state& s, const float* x, std::int64_t row, std::int64_t row_end) const;

  /// y [row_end - row, cols] holds columns [first, first + cols) of product i, with its bias and nothing else.
  void scale(const run_state& s, std::size_t i, const float* bias, std::int64_t row, std::int64_t row_end,
             std::int64_t first, std::int64_t cols, float* y, std::int64_t y_stride) const;
  /// Adds B u to them, once everything is projected.
  void add(const run_state& s, std::size_t i, std::int64_t row, std::int64_t row_end, std::int64_t first,
           std::int64_t cols, float* y, std::int64_t y_stride) const;

 private:
  [[nodiscard]] bool gains(const adapter_segment& segment, std::size_t i) const;
  [[nodiscard]] std::span<const adapter_segment> segments(const run_state& s) const noexcept {
    return x_.outputs ? s.bound->adapters.outputs : s.bound->adapters.tokens;
  }
  /// Calls f(product, share, change, number of projections before it) for every change that a segment's rows get.
  template <class F>
  void for_changes(const adapter_segment& segment, F&& f) const;
  /// Calls f(segment, share, change, number of projections before it, first, last) for projections [first, last) of
  /// every change that [begin, end) touches.
  template <class F>
  void for_projections(const run_state& s, std::int64_t begin, std::int64_t end, F&& f) const;
  void project(const run_state& s, const adapter_share& share, const low_rank_change& c, const float* x,
               std::int64_t row, std::int64_t row_end, std::int64_t offset, std::int64_t first,
               std::int64_t last) const;

  const kernels::kernel_set& kernels_;
  operand x_;
  std::vector<std::uint32_t> slots_;  ///< [products]
};

}  // namespace flywheel::inline v0::device
