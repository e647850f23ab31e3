// Numbers of rows that programs are compiled for, since devices have static shapes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace flywheel::inline v0::device {

/// One row for decoding, blocks for prefill; what remains of a chunk is padded.
constexpr std::array<std::int64_t, 4> bucket_rows = {1, 32, 128, 256};

/// Cuts chunks into buckets as cheaply as possible, when a bucket costs its rows, rounded up to the device's tile, and
/// a launch as much as some 16 rows.
class bucket_table {
 public:
  explicit bucket_table(std::uint32_t tile_rows) {
    const std::int64_t tile = tile_rows == 0 ? 1 : tile_rows;
    std::array<std::int64_t, bucket_rows.back()> best{};  // of so many rows
    for (std::size_t r = 1; r < best.size(); ++r) {
      best[r] = std::numeric_limits<std::int64_t>::max();
      for (std::size_t b = 0; b < bucket_rows.size(); ++b) {
        const auto size = static_cast<std::size_t>(bucket_rows[b]);
        const std::int64_t cost = (bucket_rows[b] + tile - 1) / tile * tile + 16 + (r > size ? best[r - size] : 0);
        if (cost <= best[r]) best[r] = cost, first_[r] = static_cast<std::uint8_t>(b);
      }
    }
  }

  /// Calls body(index into bucket_rows, first row, rows that are not padding) for all of `rows` rows.
  template <class Body>
  void for_each(std::int64_t rows, Body&& body) const {
    for (std::int64_t at = 0; at < rows;) {
      const std::int64_t left = rows - at;
      const std::size_t b =
          left >= bucket_rows.back() ? bucket_rows.size() - 1 : first_[static_cast<std::size_t>(left)];
      const std::int64_t used = left < bucket_rows[b] ? left : bucket_rows[b];
      body(b, at, used);
      at += used;
    }
  }

 private:
  std::array<std::uint8_t, bucket_rows.back()> first_{};  ///< The first bucket for so many rows.
};

}  // namespace flywheel::inline v0::device
