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
  std::vector<float> counts;  ///< [matrices]: rows seen; 0: none, the matrix is not known.
};

struct importance_matrix {
  std::map<std::string, importance_entry, std::less<>> entries;  ///< By tensor name.
  std::vector<std::string> datasets;
  std::uint32_t chunks = 0;
  std::uint32_t chunk_size = 0;

  /// sums / counts [matrices, cols] of a tensor, 1 for matrices that saw nothing; empty when the tensor did not. (From
  /// the older form all matrices' columns come as one row, in the same order.)
  [[nodiscard]] FLYWHEEL_API std::vector<float> of(std::string_view tensor) const;
  /// Reads either form: GGUF, or llama.cpp's older .dat. Errors: not_found, io, malformed, out_of_memory.
  [[nodiscard]] static FLYWHEEL_API result<importance_matrix> read(const std::filesystem::path& path);
  [[nodiscard]] static FLYWHEEL_API result<importance_matrix> read(std::span<const std::byte> bytes);
  /// Writes the GGUF form (temporary name, rename). Errors: invalid_argument (an entry that contradicts itself), io.
  [[nodiscard]] FLYWHEEL_API result<void> write(const std::filesystem::path& path) const;
};

struct importance_options {
  std::int32_t chunk = 512;     ///< Tokens of a window.
  std::int64_t max_chunks = 0;  ///< At most so many windows, evenly from the text; 0: all of it.
  std::string dataset;          ///< Recorded in the result.
  flywheel::context context = {};
  flywheel::control control = {};
};

/// Runs a text through the model and collects, for every weight that is multiplied with activations (the embedding
/// table only where it is the output head too), by expert where there are experts. Windows are llama-imatrix's: whole
/// chunks of the text with its special tokens, the start token in place of each one's first. `model` comes from
/// open_model_archive. The result does not depend on the number of threads. Errors: those of opening and running;
/// unsupported (no vocabulary, an encoder); invalid_argument (a text shorter than a window; activations that are not
/// finite, naming the tensor); cancelled.
[[nodiscard]] FLYWHEEL_API result<importance_matrix> collect_importance(const io::archive& model, std::string_view text,
                                                                        const importance_options& options = {});

}  // namespace flywheel::inline v0::quant
