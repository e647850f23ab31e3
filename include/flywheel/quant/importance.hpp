// Importance matrices: per input channel of every weight, the mean square of what went into it over a calibration text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::inline v0::quant {

/// Of one tensor.
struct importance_entry {
  std::int64_t cols = 0;
  std::vector<float> sums;    ///< [matrices, cols]: sum of x^2
  std::vector<float> counts;  ///< [matrices]: rows seen; 0 reads as 1.
};

struct importance_matrix {
  std::map<std::string, importance_entry, std::less<>> entries;  ///< By tensor name.
  std::vector<std::string> datasets;
  std::uint32_t chunks = 0;
  std::uint32_t chunk_size = 0;

  /// sums / counts [matrices, cols] of a tensor; empty when it was not seen.
  [[nodiscard]] FLYWHEEL_API std::vector<float> of(std::string_view tensor) const;
  /// Reads either form: GGUF, or llama.cpp's older .dat. Errors: not_found, io, malformed.
  [[nodiscard]] static FLYWHEEL_API result<importance_matrix> read(const std::filesystem::path& path);
  /// Writes the GGUF form (temporary name, rename).
  [[nodiscard]] FLYWHEEL_API result<void> write(const std::filesystem::path& path) const;
};

struct importance_options {
  std::int32_t chunk = 512;     ///< Tokens of a window.
  std::int64_t max_chunks = 0;  ///< 0: the whole text.
  std::string dataset;          ///< Recorded in the result.
  flywheel::context context = {};
  flywheel::control control = {};
};

/// Runs the texts through the model and collects. `model` is a file or folder as open_model_archive takes it. Errors:
/// those of opening and running; invalid_argument (a text shorter than a window).
[[nodiscard]] FLYWHEEL_API result<importance_matrix> collect_importance(const io::archive& model, std::string_view text,
                                                                        const importance_options& options = {});

}  // namespace flywheel::inline v0::quant
