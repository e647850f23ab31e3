// Exact order statistics of magnitudes in passes, without keeping or sorting them: a radix search over the 31 bits of
// |x| in f32, which sort as the numbers do.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/adapt/merge/method.hpp"

namespace flywheel::inline v0::adapt::merge {

/// Sorts as |x|.
[[nodiscard]] inline std::uint32_t magnitude(float x) noexcept { return std::bit_cast<std::uint32_t>(x) & 0x7fffffffU; }

/// The first `rank` numbers, largest magnitude first and of equal ones the lower index first: those above `key`, and
/// the first `ties` of the `equal` ones that have it.
struct cut {
  std::uint64_t rank = 0;
  std::uint32_t key = 0x7fffffffU;
  std::uint64_t ties = 0, equal = 0;
  /// Whether it takes the order of indices to tell which are in.
  [[nodiscard]] bool ordered() const noexcept { return ties > 0 && ties < equal; }
};

/// Cuts through several sequences of numbers, in two passes over them.
class selection {
 public:
  static constexpr int low_bits = 15;
  static constexpr std::size_t high_size = std::size_t{1} << 16, low_size = std::size_t{1} << low_bits;

  selection() = default;
  /// `ranks` [sequences][cuts of each], from 0 to the number of elements.
  explicit selection(const std::vector<std::vector<std::uint64_t>>& ranks) : cuts_(ranks.size()) {
    for (std::size_t s = 0; s < ranks.size(); ++s)
      for (const std::uint64_t rank : ranks[s]) cuts_[s].push_back({rank});
  }

  /// Counts that the next pass needs; 0: all is known.
  [[nodiscard]] std::size_t counts() const noexcept {
    if (stage_ == 0) return cuts_.size() * high_size;
    return stage_ == 1 ? total() * low_size : 0;
  }

  /// Counts that any pass needs.
  [[nodiscard]] std::size_t most_counts() const noexcept {
    return std::max(cuts_.size() * high_size, total() * low_size);
  }

  /// Counts value(0) .. value(n-1) of a sequence into the whole pass's counts.
  template <class Value>
  void look(std::size_t sequence, std::int64_t n, Value value, std::span<std::uint64_t> counts) const {
    if (stage_ == 0) {
      std::uint64_t* const bins = counts.data() + sequence * high_size;
      for (std::int64_t i = 0; i < n; ++i) ++bins[magnitude(value(i)) >> low_bits];
      return;
    }
    std::size_t index = first_of(sequence);
    for (const cut& c : cuts_[sequence]) {
      std::uint64_t* const bins = counts.data() + index++ * low_size;
      if (c.rank == 0) continue;
      const std::uint32_t high = c.key >> low_bits;
      // Few are in the bin: blocks without any take a vector comparison.
      constexpr std::int64_t block = 32;
      for (std::int64_t i = 0; i < n; i += block) {
        const std::int64_t m = n - i < block ? n - i : block;
        std::uint32_t keys[block], hits = 0;
        for (std::int64_t j = 0; j < m; ++j) {
          keys[j] = magnitude(value(i + j));
          hits |= keys[j] >> low_bits == high ? 1U : 0U;
        }
        if (hits == 0) continue;
        for (std::int64_t j = 0; j < m; ++j)
          if (keys[j] >> low_bits == high) ++bins[keys[j] & (low_size - 1)];
      }
    }
  }

  /// The pass is over; `all` its counts together.
  void finish(std::span<const std::uint64_t> all) {
    const std::size_t size = stage_ == 0 ? high_size : low_size;
    std::size_t index = 0;
    for (std::size_t s = 0; s < cuts_.size(); ++s)
      for (cut& c : cuts_[s]) {
        const std::uint64_t* const bins = all.data() + (stage_ == 0 ? s : index++) * size;
        if (c.rank == 0) continue;  // nothing is above the largest key
        std::uint64_t left = stage_ == 0 ? c.rank : c.ties;
        std::size_t bin = size;
        while (bin-- > 1 && bins[bin] < left) left -= bins[bin];
        if (stage_ == 0) {
          c.key = static_cast<std::uint32_t>(bin << low_bits);
        } else {
          c.key |= static_cast<std::uint32_t>(bin);
          c.equal = bins[bin];
        }
        c.ties = left;
      }
    ++stage_;
  }

  [[nodiscard]] std::size_t sequences() const noexcept { return cuts_.size(); }
  [[nodiscard]] std::span<const cut> cuts(std::size_t sequence) const noexcept { return cuts_[sequence]; }
  /// Another rank, as long as no pass is over.
  void set_rank(std::size_t sequence, std::size_t index, std::uint64_t rank) { cuts_[sequence][index].rank = rank; }
  /// Whether some cut needs the order of indices.
  [[nodiscard]] bool ordered() const noexcept {
    for (const auto& of : cuts_)
      for (const cut& c : of)
        if (c.ordered()) return true;
    return false;
  }
  /// Of all sequences together, and of those before one.
  [[nodiscard]] std::size_t total() const noexcept { return first_of(cuts_.size()); }
  [[nodiscard]] std::size_t first_of(std::size_t sequence) const noexcept {
    std::size_t n = 0;
    for (std::size_t s = 0; s < sequence; ++s) n += cuts_[s].size();
    return n;
  }

 private:
  std::vector<std::vector<cut>> cuts_;  ///< [sequences]
  int stage_ = 0;
};

/// How many of value(0) .. value(n-1) have the cut's key.
template <class Value>
[[nodiscard]] std::int64_t count_equal(const cut& c, std::int64_t n, Value value) noexcept {
  std::int64_t equal = 0;
  for (std::int64_t i = 0; i < n; ++i) equal += magnitude(value(i)) == c.key ? 1 : 0;
  return equal;
}

/// Walks over a sequence from some place on and says what is within a cut.
class cut_walk {
 public:
  /// `before`: how many have had the key so far.
  cut_walk(const cut& c, double before) noexcept
      : key_(static_cast<std::int32_t>(c.key)),
        left_(static_cast<std::int64_t>(c.ties) - static_cast<std::int64_t>(before)) {
    if (!c.ordered() && c.ties > 0) left_ = std::numeric_limits<std::int64_t>::max();  // all of them
  }
  /// The next n: in[i] = all ones where keys[i] is within, else 0.
  void next(const std::int32_t* keys, std::int64_t n, std::uint32_t* in) noexcept {
    std::int64_t equal = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      in[i] = keys[i] > key_ ? ~0U : 0U;
      equal += keys[i] == key_ ? 1 : 0;
    }
    if (equal == 0 || left_ <= 0) return;
    if (left_ >= equal) {
      for (std::int64_t i = 0; i < n; ++i) in[i] = keys[i] >= key_ ? ~0U : 0U;
      if (left_ != std::numeric_limits<std::int64_t>::max()) left_ -= equal;
      return;
    }
    for (std::int64_t i = 0; i < n && left_ > 0; ++i)
      if (keys[i] == key_) in[i] = ~0U, --left_;
  }

 private:
  std::int32_t key_;
  std::int64_t left_;
};

}  // namespace flywheel::inline v0::adapt::merge
