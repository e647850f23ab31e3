// Second moments of what goes into a model's weights over a calibration text: what error feedback needs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/gptq.hpp"

namespace flywheel::inline v0::quant {

/// Tensors that multiply the same activations (attn_q, attn_k and attn_v) share one.
using moments_by_tensor = std::map<std::string, std::shared_ptr<const tensor_moments>, std::less<>>;

struct calibration_options {
  std::int32_t chunk = 512;     ///< Tokens of a window.
  std::int64_t max_chunks = 0;  ///< At most so many windows, evenly from the text; 0: all of it.
  /// Which tensors are looked at; empty: all.
  std::function<bool(std::string_view tensor)> wants = {};
  flywheel::context context = {};
  flywheel::control control = {};
};

/// Runs the text through the model. Memory: 4 n^2 bytes for every place with n columns that is wanted, times the
/// experts there. Sums have one order, whatever the number of threads. A partly quantized archive
/// (io::archive::assemble of finished and original tensors) gives the moments that later layers really see. Errors:
/// those of opening and running; invalid_argument (a text shorter than a window; activations that are not finite),
/// out_of_memory.
[[nodiscard]] FLYWHEEL_API result<moments_by_tensor> collect_moments(const io::archive& model, std::string_view text,
                                                                     const calibration_options& options = {});

/// The model's matrices in the order of its graph, cut so that collect_moments takes at most about `bytes` for each
/// part (a part is never less than one place). Errors: those of reading the architecture.
[[nodiscard]] FLYWHEEL_API result<std::vector<std::vector<std::string>>> plan_passes(const io::archive& model,
                                                                                     std::uint64_t bytes);

}  // namespace flywheel::inline v0::quant
