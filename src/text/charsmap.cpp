#include "charsmap.hpp"

#include <algorithm>

#include "flywheel/detail/utf8.hpp"

namespace flywheel::inline v0::text {
namespace {

constexpr const char* charsmap_key = "tokenizer.ggml.precompiled_charsmap";

std::uint32_t read_u32(std::string_view bytes) noexcept {
  std::uint32_t value = 0;
  for (unsigned i = 0; i < 4; ++i) value |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return value;
}

// A unit of the double array: bits 0-7 label, bit 8 "a value hangs here", bits 10-30 offset (bit 9: times 256); or a
// value in bits 0-30 with bit 31 set.
bool has_leaf(std::uint32_t unit) noexcept { return ((unit >> 8) & 1) != 0; }
std::uint32_t label(std::uint32_t unit) noexcept { return unit & ((1U << 31) | 0xFF); }
std::uint32_t offset(std::uint32_t unit) noexcept { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }
std::uint32_t value(std::uint32_t unit) noexcept { return unit & ((1U << 31) - 1); }

}  // namespace

result<charsmap> charsmap::parse(std::string_view blob) {
  charsmap map;
  if (blob.empty()) return map;
  if (blob.size() < 4) return error{errc::malformed, "is too short for its header", charsmap_key};
  const std::uint32_t size = read_u32(blob);
  blob.remove_prefix(4);
  if (size > blob.size() || size % 4 != 0 || size == 0)
    return error{errc::malformed,
                 "declares an array of " + std::to_string(size) + " bytes in " + std::to_string(blob.size()),
                 charsmap_key};
  map.units_.reserve(size / 4);
  for (std::size_t i = 0; i < size; i += 4) map.units_.push_back(read_u32(blob.substr(i)));
  map.replacements_ = blob.substr(size);
  if (!map.replacements_.empty() && map.replacements_.back() != '\0')
    return error{errc::malformed, "ends inside a replacement", charsmap_key};
  return map;
}

charsmap::found charsmap::longest_prefix(std::string_view text) const noexcept {
  found best;
  if (units_.empty()) return best;
  std::size_t node = offset(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
    node ^= byte;
    if (byte == 0 || node >= units_.size() || label(units_[node]) != byte) break;
    const std::uint32_t unit = units_[node];
    node ^= offset(unit);
    if (!has_leaf(unit)) continue;
    if (node >= units_.size()) break;
    const std::uint32_t start = value(units_[node]);
    if (start >= replacements_.size()) continue;
    best = {i + 1, std::string_view(replacements_.data() + start)};  // ends at the next zero byte; there is one
  }
  return best;
}

void charsmap::normalize(std::string_view text, std::string& out) const {
  while (!text.empty()) {
    const found known = longest_prefix(text);
    std::size_t length = known.length;
    if (length != 0) {
      out.append(known.replacement);
    } else if ((length = detail::utf8_length(text)) != 0) {
      out.append(text.substr(0, length));
    } else {
      out.append(detail::utf8_replacement);
      length = 1;
    }
    text.remove_prefix(length);
  }
}

}  // namespace flywheel::inline v0::text
