// GPT-2's alphabet: every byte is written as one printable character, so that vocabularies are text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "flywheel/detail/utf8.hpp"

namespace flywheel::inline v0::text {

struct byte_alphabet {
  static constexpr std::uint32_t characters = 0x144;  ///< All are below this code point.
  std::array<std::uint16_t, 256> character{};         ///< of a byte
  std::array<std::int16_t, characters> byte{};        ///< of a character; -1: not in the alphabet

  constexpr byte_alphabet() {
    for (auto& b : byte) b = -1;
    std::uint16_t next = 256;  // bytes that print nothing take the characters from U+0100 on, in order
    for (unsigned b = 0; b < 256; ++b) {
      const bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      character[b] = prints ? static_cast<std::uint16_t>(b) : next++;
      byte[character[b]] = static_cast<std::int16_t>(b);
    }
  }
};
inline constexpr byte_alphabet gpt2_alphabet{};

/// Writes the spelling of `bytes` at `out`, which has room for twice as many; returns its length.
inline std::size_t spell_bytes(std::string_view bytes, char* out) noexcept {
  char* const begin = out;
  for (const char c : bytes) {
    const std::uint32_t code = gpt2_alphabet.character[static_cast<unsigned char>(c)];
    if (code < 0x80) {
      *out++ = static_cast<char>(code);
    } else {
      *out++ = static_cast<char>(0xC0 | (code >> 6));
      *out++ = static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  return static_cast<std::size_t>(out - begin);
}

/// Appends the bytes that `spelling` stands for; characters outside the alphabet stand for themselves.
inline void append_spelled(std::string_view spelling, std::string& out) {
  while (!spelling.empty()) {
    const auto [code, length] = detail::decode_utf8(spelling);
    if (length != 0 && code < byte_alphabet::characters && gpt2_alphabet.byte[code] >= 0)
      out.push_back(static_cast<char>(gpt2_alphabet.byte[code]));
    else
      out.append(spelling.substr(0, length == 0 ? 1 : length));
    spelling.remove_prefix(length == 0 ? 1 : length);
  }
}

}  // namespace flywheel::inline v0::text
