#include "src/io/reading.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

/// Length of the valid UTF-8 sequence at the front of `text` (not empty), or 0. Overlong forms, surrogates and values
/// beyond U+10FFFF are invalid (Unicode 15, table 3-7).
std::size_t sequence_length(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto continues = [&](std::size_t i) { return (at(i) & 0xC0U) == 0x80U; };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned second = at(1);
    if (lead == 0xE0 && second < 0xA0) return 0;
    if (lead == 0xED && second > 0x9F) return 0;
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned second = at(1);
    if (lead == 0xF0 && second < 0x90) return 0;
    if (lead == 0xF4 && second > 0x8F) return 0;
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

bool valid_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t n = sequence_length(text);
    if (n == 0) return false;
    text.remove_prefix(n);
  }
  return true;
}

std::string in_quotes(std::string_view name) {
  static constexpr std::size_t longest = 80;
  static constexpr char digits[] = "0123456789abcdef";
  std::string out = "'";
  while (!name.empty() && out.size() < longest) {
    const std::size_t n = sequence_length(name);
    const auto byte = static_cast<unsigned char>(name[0]);
    if (n == 0 || byte < 0x20 || byte == 0x7F) {
      out += "\\x";
      out += digits[byte >> 4];
      out += digits[byte & 15];
      name.remove_prefix(1);
    } else {
      out += name.substr(0, n);
      name.remove_prefix(n);
    }
  }
  if (!name.empty()) out += "...";
  return out += '\'';
}

std::optional<std::int64_t> checked_elements(std::span<const std::int64_t> dims) noexcept {
  static constexpr std::int64_t limit = INT64_MAX;
  for (const std::int64_t d : dims)
    if (d == 0) return 0;
  std::int64_t product = 1;
  for (const std::int64_t d : dims) {
    if (d < 0 || product > limit / d) return std::nullopt;
    product *= d;
  }
  return product;
}

std::optional<std::uint64_t> checked_bytes(const dtype_info& type, std::int64_t elements, std::int64_t cols) noexcept {
  if (elements < 0 || cols % type.block_elements != 0 || elements % type.block_elements != 0) return std::nullopt;
  const std::int64_t blocks = elements / type.block_elements;
  if (blocks > INT64_MAX / type.block_bytes) return std::nullopt;
  std::uint64_t bytes = static_cast<std::uint64_t>(blocks) * type.block_bytes;
  if (type.header_bytes() != 0 && cols > 0) {
    const std::uint64_t rows = static_cast<std::uint64_t>(elements / cols);
    if (rows > (INT64_MAX - bytes) / type.header_bytes()) return std::nullopt;
    bytes += rows * type.header_bytes();
  }
  return bytes;
}

}  // namespace flywheel::inline v0::io::detail
