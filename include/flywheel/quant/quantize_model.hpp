// Quantizing a whole model: which tensor gets which type, how, and what came of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/evaluate/compare.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/gptq.hpp"
#include "flywheel/quant/importance.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// How weights are rounded.
enum class method : std::uint8_t {
  nearest,
  search,
  greedy,
  gptq,  ///< Error feedback; needs calibration text.
  awq,   ///< Activation-aware scales folded into neighbours, then search; needs calibration text.
};
[[nodiscard]] FLYWHEEL_API std::string_view to_string(method how) noexcept;
/// Of a name, "rtn" for nearest; nothing when there is none.
[[nodiscard]] FLYWHEEL_API std::optional<method> find_method(std::string_view name) noexcept;

/// Tensors whose name has a match of the expression (PCRE2) get this type.
struct type_override {
  std::string pattern;
  dtype type = dtype::q8_0;
};

/// What the model is run on to measure activations and errors: text like that it will be used on.
struct calibration_text {
  std::string name;
  std::string text;
};

struct quantize_options {
  // One of these four says which types tensors get.
  /// A mix as GGUF's users know it (Q4_K_M, IQ3_XS, ...) or a tensor type, which all matrices then get.
  std::string type = {};
  std::optional<double> target_bpw = {};           ///< Bits per weight, at most, over all tensors. Needs calibration.
  std::optional<std::uint64_t> target_bytes = {};  ///< Of the file, at most. Needs calibration.
  std::optional<double> max_kl = {};  ///< Mean KL divergence from the original on the calibration text, at most, in the
                                      ///< fewest bytes. Needs calibration.
  bool pure = false;                  ///< Of a mix: its main type for every matrix.
  std::vector<type_override> overrides = {};  ///< The first that matches decides.
  quant::method method = quant::method::search;
  const importance_matrix* importance = nullptr;  ///< Weighs errors; may be null.
  std::string importance_file = {};               ///< Its name, for the metadata.
  /// Measures what targets and methods ask for; and importance, where none is given.
  std::vector<calibration_text> calibration = {};
  std::int32_t calibration_ctx = 256;  ///< Tokens of a window of it.
  /// At most so many windows, evenly from all texts; 0: all. A choice of types by a target runs the model on them many
  /// times and takes 4 to 48 of them.
  std::int64_t calibration_windows = 256;
  /// Of gptq: bytes of activations' second moments at a time, which decides how often the text is passed through the
  /// model. Later passes see what earlier ones rounded; with 0 there is one for every place in the graph.
  std::uint64_t memory = std::uint64_t{4} << 30;
  /// First rotate the residual stream and the values of heads (transform.hpp), which spreads outliers.
  bool rotate = false;
  bool allow_requantize = false;   ///< Take files whose matrices are quantized already.
  bool dry_run = false;            ///< Decide and report, write nothing.
  flywheel::context context = {};  ///< Threads; empty: one with default options is created.
  flywheel::control control = {};  ///< Progress in bytes written, and cancellation.
};

struct quantized_tensor {
  std::string name;
  dtype from = dtype::f32, to = dtype::f32;
  std::int64_t elements = 0;
  std::uint64_t bytes_before = 0, bytes = 0;
  bool fallback = false;  ///< Rows are no whole blocks of the type that was meant.
  double share = 0;       ///< Of the predicted KL divergence, where a target was given.
};

struct quantize_report {
  std::vector<quantized_tensor> tensors;      ///< In file order.
  std::uint64_t bytes_before = 0, bytes = 0;  ///< Of all tensors.
  double bits_per_weight = 0;                 ///< 8 bytes / elements, over all tensors.
  std::uint64_t resumed = 0;                  ///< Tensors that an interrupted run had written.
  double seconds = 0;
  /// Where a target was given: the KL divergence that was predicted, as a sum over tensors, and what was measured on
  /// calibration text that types were not fitted to. Importance that is collected has seen all of the text.
  std::optional<double> predicted_kl;
  std::optional<evaluate::comparison> measured;
};

/// Writes `from`, a GGUF model or a translated Hugging Face folder (open_model_archive), to `out` with its matrices in
/// smaller types: GGUF, or safetensors where the name ends with .safetensors. A few MiB of a tensor are in memory at
/// once; while types are chosen by a target, the model and what is changed of it (docs/quantization.md). Until it is
/// complete the file is called `out`.partial; after an interruption (cancelled, killed, a full disk) the same call goes
/// on after the last complete tensor, and its file equals that of an uninterrupted one, byte for byte. The same bytes
/// for any number of threads. Errors: invalid_argument (none or several of type and targets; a target out of reach,
/// saying what can be reached; no calibration text, or one that is too short; an unknown type; no encoder for it; a
/// type that needs importance without it, or that the container does not have; importance for a model that is rotated,
/// which needs calibration text; a quantized source without allow_requantize; `out` is `from`; NaN or infinity, naming
/// tensor and index), unsupported (no model), cancelled, io, and those of reading.
[[nodiscard]] FLYWHEEL_API result<quantize_report> quantize_model(const io::archive& from,
                                                                  const std::filesystem::path& out,
                                                                  const quantize_options& options);

/// The names that quantize_options::type takes, mixes first.
[[nodiscard]] FLYWHEEL_API std::vector<std::string_view> quantize_types();

}  // namespace flywheel::inline v0::quant
