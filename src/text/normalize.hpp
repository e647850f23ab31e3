// Unicode normalisation (utf8proc behind a small interface).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::text {

/// `text`, valid UTF-8, in Unicode normalisation form C. Error: out_of_memory.
[[nodiscard]] result<std::string> compose(std::string_view text);

/// The canonical decomposition (NFD) of one code point; at most four code points. Returns how many.
std::uint32_t decompose(std::uint32_t code, std::uint32_t (&out)[4]) noexcept;

[[nodiscard]] std::uint32_t to_lower(std::uint32_t code) noexcept;
[[nodiscard]] bool is_combining_mark(std::uint32_t code) noexcept;  ///< Mn
[[nodiscard]] bool is_punctuation(std::uint32_t code) noexcept;     ///< P*
[[nodiscard]] bool is_control(std::uint32_t code) noexcept;         ///< C*: control, format, private use, not assigned
[[nodiscard]] bool is_space(std::uint32_t code) noexcept;           ///< Unicode White_Space

}  // namespace flywheel::inline v0::text
