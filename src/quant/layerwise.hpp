// Error feedback over a whole model: passes of a calibration text through the model as far as it is quantized, each
// followed by the rounding of the tensors that were looked at.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/io/archive.hpp"
#include "src/model/tensor_pipeline.hpp"

namespace flywheel::inline v0::quant {

struct layerwise_options {
  std::string text;          ///< Calibration.
  std::int32_t chunk = 512;  ///< Tokens of a window.
  std::int64_t max_chunks = 0;
  std::uint64_t memory = 0;  ///< Of second moments in one pass; 0: one place in the graph per pass.
  context ctx;
  flywheel::control control;
};

/// Writes the tensors of `from` whose types[i] is another than theirs and has a grid, in the order of the model's
/// graph. Later passes see what earlier ones wrote. Tensors that are complete already stay. The others are left to the
/// caller. Errors: those of collect_moments, gptq and the pipeline.
[[nodiscard]] result<void> write_layerwise(const io::archive& from, const std::vector<dtype>& types,
                                           flywheel::detail::tensor_pipeline& pipeline,
                                           const layerwise_options& options);

}  // namespace flywheel::inline v0::quant
