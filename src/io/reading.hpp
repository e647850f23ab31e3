// What the container readers share. Everything here may throw std::bad_alloc: archive::open stands guard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::io::detail {

// Bounds on what a file may ask for, far above what models need. They keep a hostile file, however long it is, from
// making the reader use more than about four times as much memory.
inline constexpr std::uint64_t max_header_bytes = 256U << 20;  ///< GGUF metadata and tensor table.
inline constexpr std::uint64_t max_json_bytes = 100'000'000;   ///< The limit of safetensors' own reader.
inline constexpr std::uint64_t max_keys = 1U << 16;
inline constexpr std::uint64_t max_tensors = 1U << 20;
inline constexpr std::uint64_t max_name_bytes = 65535;

/// What one file holds. The tensors' `part` is 0.
struct part_content {
  io::metadata metadata;
  std::vector<tensor_info> tensors;
  std::uint32_t version = 0;
};

/// Both check everything about the file but the uniqueness of tensor names. `where` names the file in errors.
[[nodiscard]] result<part_content> read_gguf(const byte_source& source, const std::string& where);
[[nodiscard]] result<part_content> read_safetensors(const byte_source& source, const std::string& where);

/// `weight_map` of a *.safetensors.index.json: tensor name -> file name in the same folder.
[[nodiscard]] result<std::map<std::string, std::string>> read_safetensors_index(std::span<const std::byte> json,
                                                                                const std::string& where);

/// A name from a file, quoted and fit for a one-line message: control characters and invalid UTF-8 appear as \xNN, and
/// what is longer than 80 bytes is cut.
[[nodiscard]] std::string in_quotes(std::string_view name);

[[nodiscard]] bool valid_utf8(std::string_view text) noexcept;

/// Product of extents >= 0; nothing when it exceeds 63 bits.
[[nodiscard]] std::optional<std::int64_t> checked_elements(std::span<const std::int64_t> dims) noexcept;
/// Bytes of `elements` values in rows of `cols`; nothing for partial blocks or beyond 63 bits.
[[nodiscard]] std::optional<std::uint64_t> checked_bytes(const dtype_info& type, std::int64_t elements,
                                                         std::int64_t cols) noexcept;

}  // namespace flywheel::inline v0::io::detail
