#include "normalize.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace flywheel::inline v0::text {

result<std::string> compose(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; }))
    return std::string(text);
  utf8proc_uint8_t* raw = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &raw, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(raw, std::free);
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (length < 0) return error{errc::internal, utf8proc_errmsg(length), "Unicode normalisation"};
  return std::string(reinterpret_cast<const char*>(raw), static_cast<std::size_t>(length));
}

std::uint32_t decompose(std::uint32_t code, std::uint32_t (&out)[4]) noexcept {
  utf8proc_int32_t parts[4] = {};
  int boundary = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts, 4,
                                             static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE), &boundary);
  if (count < 1 || count > 4) {
    out[0] = code;
    return 1;
  }
  for (int i = 0; i < count; ++i) out[i] = static_cast<std::uint32_t>(parts[i]);
  return static_cast<std::uint32_t>(count);
}

std::uint32_t to_lower(std::uint32_t code) noexcept {
  return static_cast<std::uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}

bool is_combining_mark(std::uint32_t code) noexcept {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code)) == UTF8PROC_CATEGORY_MN;
}

bool is_punctuation(std::uint32_t code) noexcept {
  const auto c = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool is_control(std::uint32_t code) noexcept {
  const auto c = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return c == UTF8PROC_CATEGORY_CN || (c >= UTF8PROC_CATEGORY_CC && c <= UTF8PROC_CATEGORY_CO);
}

bool is_space(std::uint32_t code) noexcept {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  if (code == 0x85) return true;
  const auto c = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP;
}

}  // namespace flywheel::inline v0::text
