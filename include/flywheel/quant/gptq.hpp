// Rounding with error feedback: what rounding one column loses is made up by the columns after it (GPTQ, Frantar et al.
// 2023), on the grids of GGUF's block formats and of flywheel's own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// Second moments of the activations that go into a weight: sum of x x^T over rows x [n].
struct gram_matrix {
  std::int64_t n = 0;
  std::vector<float> sums;  ///< [n, n], symmetric.
  double rows = 0;          ///< How many x were summed.
};

/// Of a tensor of one matrix or several (experts), each with activations of its own.
struct tensor_moments {
  std::vector<gram_matrix> matrices;
  gram_matrix all;  ///< The sum over matrices, where there are several.

  /// What matrix i is rounded with: its own moments, or those of all where it saw fewer rows than it has columns.
  [[nodiscard]] const gram_matrix& of(std::size_t i) const noexcept {
    const gram_matrix& own = matrices[i];
    return matrices.size() == 1 || own.rows >= static_cast<double>(own.n) ? own : all;
  }
};

struct gptq_options {
  rounding method = rounding::search;  ///< How grids are fitted.
  bool act_order = false;   ///< Columns by falling activation energy, on grids fixed beforehand; else left to right, on
                            ///< grids fitted to the columns as they are when their block's turn comes.
  std::int32_t sweeps = 0;  ///< Of coordinate descent over the codes afterwards, on the same grids.
  float damping = 0.1F;     ///< Of the mean diagonal; times 10 until the factorization succeeds.
};

/// w [n_out, k] of any type with a decoder, activations' second moments of size k. Errors: invalid_argument (sizes, NaN
/// or infinity naming its place), unsupported (a type without grid), out_of_memory, cancelled.
[[nodiscard]] FLYWHEEL_API result<tensor> gptq(const tensor_view& w, const gram_matrix& activations, dtype type,
                                               const gptq_options& options = {}, const context& ctx = {},
                                               const control& control = {});

/// The same for w [matrices, n_out, k]; with one matrix's moments, w has any shape.
[[nodiscard]] FLYWHEEL_API result<tensor> gptq(const tensor_view& w, const tensor_moments& activations, dtype type,
                                               const gptq_options& options = {}, const context& ctx = {},
                                               const control& control = {});

}  // namespace flywheel::inline v0::quant
