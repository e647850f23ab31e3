// SHA-256 of bytes in memory; of files: file_digest.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::adapt {

/// 64 hexadecimal digits. Error: internal.
[[nodiscard]] result<std::string> digest(std::span<const std::byte> bytes);

}  // namespace flywheel::inline v0::adapt
