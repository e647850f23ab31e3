// Model files by path, whatever they are.
#pragma once

#include <filesystem>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0 {

/// A GGUF or safetensors file as io::archive::open gives it, or a Hugging Face folder (config.json, *.safetensors and
/// the tokenizer's files) as an archive with GGUF's names and metadata. Of a folder's weights nothing is read here:
/// tensors lie in the mapped files, or are computed a few rows at a time when they are read. Errors: those of
/// io::archive::open; unsupported for architectures, types and tokenizers that cannot be translated.
[[nodiscard]] FLYWHEEL_API result<io::archive> open_model_archive(const std::filesystem::path& path);

}  // namespace flywheel::inline v0
