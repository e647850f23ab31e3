#include "ascii_scan.hpp"

#include <array>
#include <cstdint>

namespace flywheel::inline v0::text {
namespace {

// What the expressions distinguish among ASCII characters. `other` is [^\s\p{L}\p{N}]: punctuation, symbols, controls.
enum : std::uint8_t { upper = 1, lower = 2, digit = 4, blank = 8, newline = 16, other = 32, foreign = 64 };
constexpr std::uint8_t letter = upper | lower, space = blank | newline;

constexpr std::array<std::uint8_t, 256> make_classes() {
  std::array<std::uint8_t, 256> c{};
  for (unsigned i = 0; i < 256; ++i) {
    if (i >= 0x80)
      c[i] = foreign;
    else if (i >= 'A' && i <= 'Z')
      c[i] = upper;
    else if (i >= 'a' && i <= 'z')
      c[i] = lower;
    else if (i >= '0' && i <= '9')
      c[i] = digit;
    else if (i == '\n' || i == '\r')
      c[i] = newline;
    else if (i == ' ' || (i >= '\t' && i <= '\r'))
      c[i] = blank;
    else
      c[i] = other;
  }
  return c;
}
constexpr auto classes = make_classes();

inline std::uint8_t class_of(char c) noexcept { return classes[static_cast<unsigned char>(c)]; }

inline const char* run(const char* p, const char* end, std::uint8_t mask) noexcept {
  while (p < end && (class_of(*p) & mask) != 0) ++p;
  return p;
}
inline bool undecided(const char* p, const char* end) noexcept { return p < end && class_of(*p) == foreign; }
inline std::size_t length(const char* from, const char* to) noexcept { return static_cast<std::size_t>(to - from); }

/// 's|'t|'re|'ve|'m|'ll|'d at `p`, which holds an apostrophe; with `any_case` as (?i:...). Sets `unknown` when a
/// character beyond ASCII could take part (U+017F is an s).
inline std::size_t contraction(const char* p, const char* end, bool any_case, bool& unknown) noexcept {
  const auto at = [&](std::size_t i) -> char {
    if (p + i >= end) return '\0';
    const char c = p[i];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = at(1);
  if (any_case && static_cast<unsigned char>(a) >= 0x80) unknown = true;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  const char b = at(2);
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/// \s+(?!\S)|\s+ : white space gives its last character to what follows.
inline std::size_t white_space(const char* p, const char* end) noexcept {
  const char* q = run(p, end, space);
  if (undecided(q, end)) return 0;
  return q == end || q - p == 1 ? length(p, q) : length(p, q) - 1;
}

/// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the last line break, if there is one.
inline std::size_t white_space_with_lines(const char* p, const char* end) noexcept {
  const char* q = p;
  const char* last = nullptr;
  for (; q < end && (class_of(*q) & space) != 0; ++q)
    if (class_of(*q) == newline) last = q;
  if (undecided(q, end)) return 0;
  if (last != nullptr) return length(p, last) + 1;
  return q == end || q - p == 1 ? length(p, q) : length(p, q) - 1;
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*` from `p`, an `other` character or the blank before one; `slash`: [\r\n/]*.
inline std::size_t symbols(const char* p, const char* end, bool slash) noexcept {
  const char* q = run(p + 1, end, other);
  if (undecided(q, end)) return 0;
  while (q < end && (class_of(*q) == newline || (slash && *q == '/'))) ++q;
  return length(p, q);
}

inline std::size_t digits(const char* p, const char* end, std::size_t most) noexcept {
  const char* q = p;
  while (q < end && length(p, q) < most && class_of(*q) == digit) ++q;
  return length(p, q) < most && undecided(q, end) ? 0 : length(p, q);
}

/// (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,most}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
inline std::size_t scan_cl100k(const char* p, const char* end, std::size_t most) noexcept {
  const std::uint8_t c = class_of(*p);
  if (c == foreign) return 0;
  if (*p == '\'') {
    bool unknown = false;
    const std::size_t n = contraction(p, end, true, unknown);
    if (unknown) return 0;
    if (n != 0) return n;
  }
  if ((c & letter) != 0 || ((c & (blank | other)) != 0 && p + 1 < end && (class_of(p[1]) & (letter | foreign)) != 0)) {
    const char* q = run(p + 1, end, letter);
    return undecided(q, end) ? 0 : length(p, q);
  }
  if (c == digit) return digits(p, end, most);
  if (c == other || (*p == ' ' && p + 1 < end && class_of(p[1]) == other)) return symbols(p, end, false);
  return white_space_with_lines(p, end);
}

/// The expressions that split words at changes of case. In ASCII a word is [A-Z]*[a-z]*, not empty.
inline std::size_t scan_cased(const char* p, const char* end, std::size_t most, bool contractions) noexcept {
  const std::uint8_t c = class_of(*p);
  if (c == foreign) return 0;
  if ((c & letter) != 0 || ((c & (blank | other)) != 0 && p + 1 < end && (class_of(p[1]) & (letter | foreign)) != 0)) {
    const char* q = (c & letter) != 0 ? p : p + 1;
    q = run(q, end, upper);
    if (undecided(q, end)) return 0;
    q = run(q, end, lower);
    if (undecided(q, end)) return 0;
    if (contractions && q < end && *q == '\'') {
      bool unknown = false;
      q += contraction(q, end, true, unknown);
      if (unknown) return 0;
    }
    return length(p, q);
  }
  if (c == digit) return digits(p, end, most);
  if (c == other || (*p == ' ' && p + 1 < end && class_of(p[1]) == other)) return symbols(p, end, true);
  return white_space_with_lines(p, end);
}

}  // namespace

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t scan_gpt2(const char* p, const char* end) noexcept {
  if (*p == '\'') {
    bool unknown = false;
    if (const std::size_t n = contraction(p, end, false, unknown)) return n;
  }
  const char* first = p + (*p == ' ' && p + 1 < end ? 1 : 0);
  const std::uint8_t c = class_of(*first);
  if (c == foreign) return 0;
  const std::uint8_t mask = (c & letter) != 0 ? letter : c;
  if ((mask & space) != 0) return white_space(p, end);
  const char* q = run(first + 1, end, mask);
  return undecided(q, end) ? 0 : length(p, q);
}

std::size_t scan_llama3(const char* p, const char* end) noexcept { return scan_cl100k(p, end, 3); }
std::size_t scan_qwen2(const char* p, const char* end) noexcept { return scan_cl100k(p, end, 1); }
std::size_t scan_o200k(const char* p, const char* end) noexcept { return scan_cased(p, end, 3, true); }
std::size_t scan_tekken(const char* p, const char* end) noexcept { return scan_cased(p, end, 1, false); }

}  // namespace flywheel::inline v0::text
