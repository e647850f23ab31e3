// Models as safetensors: GGUF's names and metadata, and the formats of neural processing units as a tensor of codes and
// one of scales, so that other tools read them. docs/npu-formats.md has the layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/writer.hpp"

namespace flywheel::inline v0::detail {

/// Whether a device takes weights of this type: Q8_G128, Q4_G128, Q8_CHANNEL, Q4_CHANNEL.
[[nodiscard]] bool is_device_format(dtype type) noexcept;

/// Adds the tensor, or its codes and its scales, to what a safetensors file will hold.
void plan_safetensors(const io::tensor_plan& tensor, std::vector<io::tensor_plan>& plans);

/// Rows of a device format taken apart: appended to `codes` and `scales`.
void take_apart(dtype type, std::int64_t cols, std::int64_t rows, const std::byte* from, std::vector<std::byte>& codes,
                std::vector<std::byte>& scales);

/// GGUF's metadata as strings, with a key that says so. Error: unsupported (text that is not UTF-8, numbers that are
/// not finite).
[[nodiscard]] result<io::metadata> to_strings(const io::metadata& meta);

/// Whether it was written so.
[[nodiscard]] bool holds_model(const io::archive& file);
/// The archive with GGUF's metadata, and device formats put together when they are read. Error: malformed.
[[nodiscard]] result<io::archive> open_safetensors_model(const io::archive& file);

}  // namespace flywheel::inline v0::detail
