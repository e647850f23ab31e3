// The three kinds of byte_source that an archive can be opened from.
#pragma once

#include <memory>
#include <span>

#include "flywheel/core/mapped_file.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::io::detail {

using source_ptr = std::shared_ptr<const byte_source>;

/// These throw std::bad_alloc only.
[[nodiscard]] source_ptr make_source(std::shared_ptr<const mapped_file> file);
[[nodiscard]] source_ptr make_source(std::span<const std::byte> bytes);
[[nodiscard]] source_ptr make_source(const reader_callback& reader);

}  // namespace flywheel::inline v0::io::detail
