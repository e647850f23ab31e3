// The kinds of byte_source that an archive can be opened from, and memory of its own.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/core/mapped_file.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::io::detail {

using source_ptr = std::shared_ptr<const byte_source>;

/// These throw std::bad_alloc only.
[[nodiscard]] source_ptr make_source(std::shared_ptr<const mapped_file> file);
[[nodiscard]] source_ptr make_source(std::span<const std::byte> bytes);
[[nodiscard]] source_ptr make_source(buffer bytes);
[[nodiscard]] source_ptr make_source(const reader_callback& reader);

/// The files that an archive's tensors lie in or are computed from. Throws std::bad_alloc only.
[[nodiscard]] std::vector<std::filesystem::path> files_of(const archive& of);

}  // namespace flywheel::inline v0::io::detail
