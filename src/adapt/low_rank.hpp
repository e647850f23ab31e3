// The best product of two thin matrices for a matrix, by a randomized singular value decomposition.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::adapt {

struct low_rank_options {
  std::int64_t rank = 16;
  std::optional<double> energy = {};  ///< The least rank with this share of the squared norm, but not more than `rank`.
  int iterations = 2;
  std::uint64_t seed = 1;
  dtype type = dtype::f32;  ///< What the factors will be stored in: they are rounded to it.
};

struct low_rank {
  std::int64_t rank = 0;
  std::vector<float> left, right;  ///< [n, rank], [rank, k]
  double squares = 0;              ///< ||d||^2
  double error_squares = 0;        ///< ||d - left right||^2, of the rounded factors.
};

/// d [n, k] ~ U S V^T, left = U sqrt(S), right = sqrt(S) V^T (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).
/// Rank at least 1, columns of zeros where d has less. The same bits for any number of threads. Error: out_of_memory.
[[nodiscard]] result<low_rank> best_low_rank(std::span<const float> d, std::int64_t n, std::int64_t k,
                                             const low_rank_options& options, const context& ctx);

}  // namespace flywheel::inline v0::adapt
