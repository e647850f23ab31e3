// Constants of the GGUF container, shared by its reader and writer.
#pragma once

#include <cstdint>
#include <string_view>

#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::io::detail {

inline constexpr std::string_view gguf_magic = "GGUF";
inline constexpr std::uint32_t gguf_version = 3;  ///< As written; 2 is read too.
inline constexpr std::string_view alignment_key = "general.alignment";
inline constexpr std::uint32_t default_alignment = 32;
inline constexpr std::uint32_t array_type = 9;
inline constexpr std::size_t max_gguf_rank = 4;

/// Alternatives of io::value are in the order of GGUF's value types, but for arrays, which come after all of them.
inline constexpr std::size_t scalar_alternatives = 12;
[[nodiscard]] constexpr std::uint32_t value_type_of(std::size_t alternative) noexcept {
  const std::size_t scalar = alternative % scalar_alternatives;
  return static_cast<std::uint32_t>(scalar < array_type ? scalar : scalar + 1);
}

/// A power of two from 8 (the specification asks for a multiple of 8) to 1 GiB.
[[nodiscard]] constexpr bool valid_alignment(std::uint64_t a) noexcept {
  return a >= 8 && a <= (1U << 30) && (a & (a - 1)) == 0;
}
[[nodiscard]] constexpr std::uint64_t align_up(std::uint64_t n, std::uint64_t alignment) noexcept {
  return (n + alignment - 1) & ~(alignment - 1);
}

/// Ids that GGUF defines or may come to define, and those of flywheel's formats for NPUs, 1101 to 1104. Not those it
/// gave up (repacked and early layouts), and not what only safetensors has.
[[nodiscard]] constexpr bool gguf_removed_type(std::uint32_t id) noexcept {
  return id == 4 || id == 5 || (id >= 31 && id <= 33) || (id >= 36 && id <= 38);
}
[[nodiscard]] constexpr bool gguf_has_type(std::uint32_t id) noexcept {
  return (id < 1000 && !gguf_removed_type(id)) || (id >= 1101 && id <= 1104);
}

/// Checks the keys that decide how a file is read, and returns its alignment. Errors: malformed, with the key as
/// `where`.
[[nodiscard]] result<std::uint64_t> check_reserved_keys(const metadata& meta);

}  // namespace flywheel::inline v0::io::detail
