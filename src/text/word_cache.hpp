// Ids of the short words that a text repeats: most words of a text are repetitions.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0::text {

/// Of fixed size, for one call. Holds words of up to 15 bytes that have up to four ids. A word has two places, side by
/// side in one cache line; the one used longer ago gives way.
class word_cache {
 public:
  static constexpr std::size_t longest_word = 15;
  static constexpr std::size_t most_ids = 4;

  /// Sized for a text of so many bytes; at most 1 MiB, which a core's second-level cache holds.
  explicit word_cache(std::size_t text_bytes)
      : lines_(std::bit_ceil(std::size_t{8} + std::min<std::size_t>(text_bytes / 64, 16376))),
        shift_(64 - std::countr_zero(lines_.size())) {}

  /// Appends the ids of the word [p, p + n), n > 0: from memory, or by `compute(out)`, which appends them. Bytes up to
  /// `end` may be read.
  template <class Compute>
  void append(const char* p, std::size_t n, const char* end, std::vector<token_id>& out, Compute&& compute) {
    if (n > longest_word) {
      compute(out);
      return;
    }
    std::uint64_t low, high;
    load(p, n, end, low, high);
    const std::uint64_t h = (low * 0x9E3779B97F4A7C15ULL) ^ std::rotl(high * 0xC2B2AE3D27D4EB4FULL, 31);
    line& l = lines_[static_cast<std::size_t>((h * 0xD6E8FEB86659FD93ULL) >> shift_)];
    if (l.recent.low != low || l.recent.high != high) {
      std::swap(l.recent, l.other);
      if (l.recent.low != low || l.recent.high != high) {
        const std::size_t before = out.size();
        compute(out);
        const std::size_t count = out.size() - before;
        if (count == 0 || count > most_ids) return;
        l.recent.low = low;
        l.recent.high = high;
        for (std::size_t i = 0; i < most_ids; ++i) l.recent.ids[i] = i < count ? out[before + i] : -1;
        return;
      }
    }
    out.push_back(l.recent.ids[0]);
    for (std::size_t i = 1; i < most_ids && l.recent.ids[i] >= 0; ++i) out.push_back(l.recent.ids[i]);
  }

 private:
  struct entry {
    std::uint64_t low = 0, high = 0;  // the bytes, zero-padded, and their number in the last byte (never 0 for a word)
    token_id ids[most_ids] = {};      // -1 after the last
  };

  struct alignas(64) line {
    entry recent, other;
  };

  static void load(const char* p, std::size_t n, const char* end, std::uint64_t& low, std::uint64_t& high) noexcept {
    if constexpr (std::endian::native == std::endian::little) {
      if (static_cast<std::size_t>(end - p) >= 16) {
        std::memcpy(&low, p, 8);
        std::memcpy(&high, p + 8, 8);
        if (n <= 8) {
          low &= ~std::uint64_t{0} >> (64 - 8 * n);
          high = 0;
        } else {
          high &= (std::uint64_t{1} << (8 * n - 64)) - 1;
        }
        high |= std::uint64_t{n} << 56;
        return;
      }
    }
    char bytes[16] = {};
    std::memcpy(bytes, p, n);
    bytes[15] = static_cast<char>(n);
    std::memcpy(&low, bytes, 8);
    std::memcpy(&high, bytes + 8, 8);
  }

  std::vector<line> lines_;
  int shift_;
};

}  // namespace flywheel::inline v0::text
