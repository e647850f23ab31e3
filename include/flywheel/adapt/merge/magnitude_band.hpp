// Sparsifier by magnitude: of every model's delta, the elements whose ranks are in a range. Rank 0 is the largest; of
// equal ones the lower index comes first.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/adapt/merge/selection.hpp"
#include "flywheel/adapt/merge/task_vectors.hpp"

namespace flywheel::inline v0::adapt::merge {

class magnitude_band {
 public:
  struct range {
    std::uint64_t first = 0, last = 0;  ///< Ranks [first, last) are kept.
    bool all = false;                   ///< Everything is.
  };
  /// `keep` [models]; `density` [models]: what rescaling to the expectation divides by.
  magnitude_band(std::vector<range> keep, std::vector<float> density)
      : keep_(std::move(keep)), density_(std::move(density)), cuts_(ranks()) {
    for (const range& r : keep_) needed_ = needed_ || !r.all;
  }

  [[nodiscard]] std::size_t counts() const noexcept { return needed_ ? cuts_.counts() : 0; }
  [[nodiscard]] std::size_t most_counts() const noexcept { return needed_ ? cuts_.most_counts() : 0; }
  [[nodiscard]] std::size_t most_ties() const noexcept { return needed_ ? bounds : 0; }
  void look(std::size_t m, const delta_rows& rows, std::span<std::uint64_t> counts) const {
    if (!keep_[m].all) cuts_.look(m, rows.count, rows, counts);
  }
  void finish(std::span<const std::uint64_t> counts) { cuts_.finish(counts); }

  [[nodiscard]] std::size_t ties() const noexcept { return needed_ && cuts_.ordered() ? bounds : 0; }
  void count_ties(std::size_t m, const delta_rows& rows, double* sums) const {
    for (std::size_t b = 0; b < bounds; ++b)
      if (const cut& c = cuts_.cuts(m)[b]; c.ordered())
        sums[b] += static_cast<double>(count_equal(c, rows.count, rows));
  }

  class walk {
   public:
    walk(const range& keep, float density, const cut& above, const cut& within, const double* before) noexcept
        : all_(keep.all),
          dropping_(keep.first > 0),
          density_(density),
          dropped_(above, before == nullptr ? 0 : before[0]),
          kept_(within, before == nullptr ? 0 : before[1]) {}
    void next(const delta_rows& rows, bool expectation, float* out) {
      const float factor = expectation && density_ > 0 ? 1 / density_ : 1;
      if (all_) {
        for (std::int64_t i = 0; i < rows.count; ++i) out[i] = rows(i);
        return;
      }
      constexpr std::int64_t block = 512;
      std::int32_t keys[block];
      std::uint32_t in[block], out_of[block];
      for (std::int64_t first = 0; first < rows.count; first += block) {
        const std::int64_t n = rows.count - first < block ? rows.count - first : block;
        for (std::int64_t i = 0; i < n; ++i) keys[i] = static_cast<std::int32_t>(magnitude(rows(first + i)));
        kept_.next(keys, n, in);
        if (dropping_) {
          dropped_.next(keys, n, out_of);
          for (std::int64_t i = 0; i < n; ++i) in[i] &= ~out_of[i];
        }
        for (std::int64_t i = 0; i < n; ++i)
          out[first + i] = factor * std::bit_cast<float>(std::bit_cast<std::uint32_t>(rows(first + i)) & in[i]);
      }
    }

   private:
    bool all_, dropping_;
    float density_;
    cut_walk dropped_, kept_;
  };
  [[nodiscard]] walk start(std::size_t m, const double* before) const noexcept {
    return {keep_[m], density_[m], cuts_.cuts(m)[0], cuts_.cuts(m)[1], before};
  }

 private:
  static constexpr std::size_t bounds = 2;
  [[nodiscard]] std::vector<std::vector<std::uint64_t>> ranks() const {
    std::vector<std::vector<std::uint64_t>> both;
    for (const range& r : keep_)
      both.push_back(r.all ? std::vector<std::uint64_t>{0, 0} : std::vector{r.first, r.last});
    return both;
  }

  std::vector<range> keep_;
  std::vector<float> density_;
  selection cuts_;
  bool needed_ = false;
};

}  // namespace flywheel::inline v0::adapt::merge
