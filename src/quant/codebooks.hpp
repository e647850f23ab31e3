// Formats whose groups are vectors of a codebook (IQ1, IQ2, IQ3): quantize() sends them here. The scalar formats are
// kernels/quantize's.
#pragma once

#include <span>

#include "kernels/quantize/quantize.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::quant {

struct codebook_format {
  dtype type;
  bool wants_importance;  ///< Whether the result is of little use without.
  std::int64_t scratch;   ///< Floats that encode() needs to work with.
  /// Encodes args.rows rows; called by many threads at once, each with scratch of its own; must not allocate or throw.
  void (*encode)(const kernels::quantize_args& args, const kernels::kernel_set& kernels, float* scratch);
};

/// A new codebook format is a row of the table in codebooks.cpp.
[[nodiscard]] std::span<const codebook_format> codebook_formats() noexcept;

}  // namespace flywheel::inline v0::quant
