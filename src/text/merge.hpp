// Byte-pair merging: of all neighbours that may merge, the pair with the smallest rank does, the leftmost first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace flywheel::inline v0::text {

/// A stretch of a word: bytes [start, start + length) of it, as one symbol.
struct symbol {
  std::uint32_t id = 0;
  std::uint32_t start = 0;
  std::uint32_t length = 0;
};

inline constexpr std::uint32_t no_merge = std::numeric_limits<std::uint32_t>::max();

/// How soon two neighbours merge; `id` is the caller's, to tell what they become.
struct merge {
  std::uint32_t rank = no_merge;
  std::uint32_t id = 0;
};

/// Merges symbols in place. Reused from word to word, so that a word costs no allocation.
///
/// Words of a few symbols look at all pairs each time (no bookkeeping, everything in cache); longer ones keep a heap,
/// O(n log n). Both give the same result.
class merger {
 public:
  static constexpr std::size_t short_word = 48;

  std::vector<symbol> symbols;  ///< Filled by the caller, in order; afterwards what is left.

  /// `find(left, right)` gives the merge of two neighbouring symbols, `result(merge)` the id of the symbol they become.
  template <class Find, class Result>
  void run(Find&& find, Result&& result, std::size_t limit = short_word) {
    if (symbols.size() < 2) return;
    if (symbols.size() <= limit)
      run_short(find, result);
    else
      run_long(find, result);
  }

 private:
  template <class Find, class Result>
  void run_short(Find& find, Result& result) {
    std::size_t n = symbols.size();
    pairs_.resize(n - 1);
    for (std::size_t i = 0; i + 1 < n; ++i) pairs_[i] = find(symbols[i], symbols[i + 1]);
    while (n > 1) {
      std::size_t best = 0;
      for (std::size_t i = 1; i + 1 < n; ++i)
        if (pairs_[i].rank < pairs_[best].rank) best = i;
      if (pairs_[best].rank == no_merge) break;
      symbols[best].id = result(pairs_[best]);
      symbols[best].length += symbols[best + 1].length;
      for (std::size_t i = best + 1; i + 1 < n; ++i) symbols[i] = symbols[i + 1];
      for (std::size_t i = best; i + 2 < n; ++i) pairs_[i] = pairs_[i + 1];
      --n;
      if (best > 0) pairs_[best - 1] = find(symbols[best - 1], symbols[best]);
      if (best + 1 < n) pairs_[best] = find(symbols[best], symbols[best + 1]);
    }
    symbols.resize(n);
  }

  struct candidate {
    std::uint64_t order;   // rank, then position of the left symbol
    std::uint32_t right;   // position of the right symbol
    std::uint32_t length;  // of both together: tells whether one of them has changed since
    std::uint32_t id;
    bool operator<(const candidate& other) const noexcept { return order > other.order; }
  };

  template <class Find, class Result>
  void run_long(Find& find, Result& result) {
    constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();
    const auto n = static_cast<std::uint32_t>(symbols.size());
    next_.resize(n);
    previous_.resize(n);
    for (std::uint32_t i = 0; i < n; ++i) {
      next_[i] = i + 1 < n ? i + 1 : none;
      previous_[i] = i > 0 ? i - 1 : none;
    }
    heap_.clear();
    const auto offer = [&](std::uint32_t left, std::uint32_t right) {
      if (left == none || right == none) return;
      const merge m = find(symbols[left], symbols[right]);
      if (m.rank == no_merge) return;
      heap_.push_back({std::uint64_t{m.rank} << 32 | left, right, symbols[left].length + symbols[right].length, m.id});
      if (heaped_) std::push_heap(heap_.begin(), heap_.end());
    };
    heaped_ = false;
    for (std::uint32_t i = 0; i + 1 < n; ++i) offer(i, i + 1);
    std::make_heap(heap_.begin(), heap_.end());
    heaped_ = true;
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const candidate c = heap_.back();
      heap_.pop_back();
      const auto left = static_cast<std::uint32_t>(c.order);
      symbol &a = symbols[left], &b = symbols[c.right];
      // Symbols only grow or vanish (length 0), so an unchanged sum means that neither did.
      if (a.length == 0 || b.length == 0 || a.length + b.length != c.length) continue;
      a.id = result(merge{static_cast<std::uint32_t>(c.order >> 32), c.id});
      a.length = c.length;
      b.length = 0;
      next_[left] = next_[c.right];
      if (next_[left] != none) previous_[next_[left]] = left;
      offer(previous_[left], left);
      offer(left, next_[left]);
    }
    std::erase_if(symbols, [](const symbol& s) { return s.length == 0; });
  }

  std::vector<merge> pairs_;
  std::vector<candidate> heap_;
  std::vector<std::uint32_t> next_, previous_;
  bool heaped_ = false;
};

}  // namespace flywheel::inline v0::text
