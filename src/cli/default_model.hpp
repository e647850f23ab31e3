// The small model that is part of the command, so that it works without any file.
#pragma once

#include <cstddef>
#include <span>

namespace flywheel::cli {

/// The bytes of a GGUF file, 64-byte aligned, valid for the life of the program; empty when the command was built with
/// FLYWHEEL_EMBED_MODEL empty.
[[nodiscard]] std::span<const std::byte> default_model() noexcept;

/// Its file name, such as "tiny-base-q8_0.gguf"; empty with it.
[[nodiscard]] const char* default_model_name() noexcept;

}  // namespace flywheel::cli
