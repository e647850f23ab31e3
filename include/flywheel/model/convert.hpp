// Writing a model as one file, with its weights in another type if asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0 {

struct convert_options {
  /// Of matrices: f32, f16, bf16, or a quantized type that can be encoded (plain rounding). Nothing: as they are. Rows
  /// that are not whole blocks of it become f16, or, of q8_g128 and q4_g128, q8_channel and q4_channel. Vectors, norms
  /// and routers stay f32, and matrices that are already quantized stay as they are.
  std::optional<dtype> type = {};
  flywheel::context context = {};  ///< Threads; empty: one with default options is created.
  flywheel::control control = {};  ///< Progress in bytes written, and cancellation.
};

/// What was written.
struct converted_model {
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;    ///< Of the tensors.
  std::uint64_t changed = 0;  ///< Tensors whose type is not that of `from`.
};

/// Writes metadata and tensors of `from`, a GGUF model or a translated Hugging Face folder, to `out`, a few MiB at a
/// time: GGUF, or safetensors (docs/npu-formats.md) where the name ends with .safetensors. The file appears under its
/// name only when it is complete. Errors: invalid_argument (a type that cannot be encoded), unsupported (a stored type
/// without decoder or, in safetensors, without a place; an archive that is no model), cancelled, io, and those of
/// reading.
[[nodiscard]] FLYWHEEL_API result<converted_model> convert(const io::archive& from, const std::filesystem::path& out,
                                                           const convert_options& options = {});

struct folder_options {
  /// Of all tensors: f32, f16 or bf16. Nothing: as those of the same name in the folder like it.
  std::optional<dtype> type = {};
  std::uint64_t max_shard_bytes = 5'000'000'000;  ///< Of a file of weights; an index joins several.
  flywheel::context context = {};
  flywheel::control control = {};  ///< Progress in bytes written, and cancellation.
};

/// Writes a model as a Hugging Face folder: weights under the names, and with rows in the order, that they have there;
/// configuration and tokenizer are those of the folder `like`, a model of the same architecture and vocabulary, with
/// the numbers of layers and tokens that this one has. The folder appears under its name only when it is complete.
/// Errors: invalid_argument (another architecture; a type that folders do not have; `out` is there and no empty
/// folder), unsupported (another vocabulary; a tensor that Hugging Face's models do not have), cancelled, io, and those
/// of reading.
[[nodiscard]] FLYWHEEL_API result<converted_model> convert_to_folder(const io::archive& from,
                                                                     const std::filesystem::path& like,
                                                                     const std::filesystem::path& out,
                                                                     const folder_options& options = {});

}  // namespace flywheel::inline v0
