// UTF-8: strict decoding, validation and repair. Used by tokenizers and by whoever prints text that may be cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace flywheel::inline v0::detail {

/// U+FFFD, what an invalid byte becomes.
inline constexpr std::string_view utf8_replacement = "\xEF\xBF\xBD";

/// One decoded code point; `length` 0 means that no valid sequence starts there.
struct utf8_char {
  std::uint32_t code = 0;
  std::uint32_t length = 0;
};

/// Decodes the sequence at the start of `text`, which is not empty. Strict: no overlong forms, no surrogates, nothing
/// above U+10FFFF (Unicode 15, table 3-7).
[[nodiscard]] inline utf8_char decode_utf8(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t b0 = byte(0);
  if (b0 < 0x80) return {b0, 1};
  const auto follows = [&](std::size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  if (b0 < 0xC2) return {};
  if (b0 < 0xE0) {
    if (!follows(1)) return {};
    return {((b0 & 0x1F) << 6) | (byte(1) & 0x3F), 2};
  }
  if (b0 < 0xF0) {
    if (!follows(1) || !follows(2)) return {};
    const std::uint32_t code = ((b0 & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F);
    if (code < 0x800 || (code >= 0xD800 && code <= 0xDFFF)) return {};
    return {code, 3};
  }
  if (b0 < 0xF5) {
    if (!follows(1) || !follows(2) || !follows(3)) return {};
    const std::uint32_t code =
        ((b0 & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) | (byte(3) & 0x3F);
    if (code < 0x10000 || code > 0x10FFFF) return {};
    return {code, 4};
  }
  return {};
}

/// Bytes of the valid sequence at the start of `text`; 0 for an invalid one.
[[nodiscard]] inline std::size_t utf8_length(std::string_view text) noexcept { return decode_utf8(text).length; }

/// Bytes from the start that are valid UTF-8.
[[nodiscard]] inline std::size_t utf8_valid_prefix(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= 8) {  // eight ASCII bytes at a time
      std::uint64_t word;
      std::memcpy(&word, text.data() + i, 8);
      if ((word & 0x8080808080808080ULL) == 0) {
        i += 8;
        continue;
      }
    }
    const std::size_t length = utf8_length(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return i;
}

[[nodiscard]] inline bool is_utf8(std::string_view text) noexcept { return utf8_valid_prefix(text) == text.size(); }

/// True when `text` starts like a valid sequence that ends too early: more bytes could complete it.
[[nodiscard]] inline bool is_utf8_beginning(std::string_view text) noexcept {
  if (text.empty() || text.size() > 3 || utf8_length(text) != 0) return false;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char b0 = byte(0);
  const std::size_t needed = b0 >= 0xC2 && b0 < 0xE0   ? 2
                             : b0 >= 0xE0 && b0 < 0xF0 ? 3
                             : b0 >= 0xF0 && b0 < 0xF5 ? 4
                                                       : 0;
  if (text.size() >= needed) return false;
  if (text.size() >= 2) {  // the second byte's range depends on the first
    const unsigned char low = b0 == 0xE0 ? 0xA0 : b0 == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = b0 == 0xED ? 0x9F : b0 == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < low || byte(1) > high) return false;
  }
  return text.size() < 3 || (byte(2) & 0xC0) == 0x80;
}

/// Appends a code point (below 0x110000).
inline void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t b) { out.push_back(static_cast<char>(static_cast<unsigned char>(b))); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6)), put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12)), put(0x80 | ((code >> 6) & 0x3F)), put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18)), put(0x80 | ((code >> 12) & 0x3F)), put(0x80 | ((code >> 6) & 0x3F)),
        put(0x80 | (code & 0x3F));
  }
}

/// A copy in which every byte that belongs to no valid sequence is U+FFFD.
[[nodiscard]] inline std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 16);
  while (!text.empty()) {
    const std::size_t good = utf8_valid_prefix(text);
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    out.append(utf8_replacement);
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace flywheel::inline v0::detail
