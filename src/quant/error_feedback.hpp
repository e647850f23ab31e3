// Rounding with error feedback on any grid. For a row w of the matrix, its rounded form q, e = w - q and second moments
// H of the activations, the output's squared error is e H e^T. With H = R R^T, R upper triangular, it is |e R|^2, whose
// component j is R_jj (e_j + sum_{i<j} e_i R_ij / R_jj): going from left to right,
//   q_j = nearest to w_j + sum_{i<j} e_i R_ij / R_jj
// makes each component as small as it can be. These are the numbers that GPTQ (Frantar et al. 2023) finds with U, H^-1
// = U^T U, by changing the weights that are left after each column; R = U^-1 needs no inverse, and its form lets all
// columns before a block act on it in one product. (That GPTQ is this nearest-plane algorithm: Chen et al. 2025.)
// Coordinate descent then goes over the columns again, each the best for all the others as they are:
//   q_j = nearest to w_j + sum_{i != j} e_i H_ij / H_jj
#pragma once

#include <cstdint>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/quant/gptq.hpp"
#include "flywheel/quant/grid.hpp"

namespace flywheel::inline v0::quant {

/// gptq() with the grid given.
[[nodiscard]] result<tensor> round_with_feedback(const tensor_view& w, const gram_matrix& activations,
                                                 const grid_format& format, const gptq_options& options,
                                                 const context& ctx, const control& control);

}  // namespace flywheel::inline v0::quant
