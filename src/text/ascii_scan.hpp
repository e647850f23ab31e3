// Hand-written matchers for the most common pre-tokenizer expressions, for ASCII text.
#pragma once

#include <cstddef>

namespace flywheel::inline v0::text {

/// Length of the expression's match at `p`, in the piece that ends at `end` (p < end). 0 when the answer depends on
/// anything but ASCII bytes, or when the matcher leaves the case to PCRE2, which is always right; the tests compare
/// both.
using ascii_scan = std::size_t (*)(const char* p, const char* end) noexcept;

std::size_t scan_gpt2(const char* p, const char* end) noexcept;
std::size_t scan_llama3(const char* p, const char* end) noexcept;  ///< Digits in groups of up to three.
std::size_t scan_qwen2(const char* p, const char* end) noexcept;   ///< The same, each digit by itself.
std::size_t scan_o200k(const char* p, const char* end) noexcept;
std::size_t scan_tekken(const char* p, const char* end) noexcept;

}  // namespace flywheel::inline v0::text
