// Products with int32 sums over several blocks of 32: activations with one scale per row, or per row and group of K,
// and panels of weights with one scale per row (output channel). The sums of a group are exact, then
//   y = sum over groups, ascending, of (float(sum) * scale of the weights) * scale of the activations
// rounded at every operation: neural processing units do the same (flywheel_matmul in flywheel/device/plugin.h).
// In an unnamed namespace: see f32_product.hpp.
//
// A panel is f32 d[cols], then the codes of each 32 of K as in q_panels.hpp; the last block is filled up with zeros.
// Weights with a scale per group are q_panels.hpp's. The activations of a tile are, for each group, i8 q[8][rows][4]
// for each 32 of K, then i32 start[rows], which is -zero * sum of q, and f32 scale[rows].
#pragma once

#include "kernels/matmul/q_product.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// scale = max|x of the group| / 127 for each Group of a row, a multiple of 32.
template <std::int64_t Group>
struct group_scales {
  static constexpr bool powers = false;
  static constexpr bool grouped = true;
  static constexpr std::size_t block_bytes(int) { return 32; }
  static constexpr std::size_t group_bytes = 2 * sizeof(float);
  static constexpr std::int64_t group = Group;

  template <class Panel>
  static void quantize(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k, std::byte* tile) {
    for (std::int64_t i = 0; i < k; i += Group)
      tile = quantize_group<Panel>(x + i, x_stride, rows, least(Group, k - i), tile);
  }

 private:
  /// Returns where the next group goes.
  template <class Panel>
  static std::byte* quantize_group(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k,
                                   std::byte* tile) {
    using S = typename Panel::simd_type;
    const std::int64_t whole = k / 32 * 32;
    const std::size_t bytes = static_cast<std::size_t>(rows) * block_bytes(1);
    std::int32_t* const starts =
        reinterpret_cast<std::int32_t*>(tile + static_cast<std::size_t>((k + 31) / 32) * bytes);
    float* const scales = reinterpret_cast<float*>(starts + rows);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* const row = x + r * x_stride;
      alignas(64) float rest[32] = {};
      for (std::int64_t i = whole; i < k; ++i) rest[i - whole] = row[i];
      std::uint32_t peak = 0;
      for (std::int64_t i = 0; i < k; i += 32) {
        const std::uint32_t own = peak_of<S>(i < whole ? row + i : rest);
        peak = own > peak ? own : peak;
      }
      const auto [scale, inverse] = q8_scale_of(peak);
      std::int32_t sum = 0;
      std::byte* block = tile;
      for (std::int64_t i = 0; i < k; i += 32, block += bytes) {
        alignas(64) std::int8_t q[32];
        std::int32_t block_sum;
        round_codes<S, 1>(i < whole ? row + i : rest, inverse, q, &block_sum);
        sum += block_sum;
        store_codes(q, rows, r, reinterpret_cast<std::int32_t*>(block));
      }
      starts[r] = -Panel::zero * sum;
      scales[r] = scale;
    }
    return reinterpret_cast<std::byte*>(scales + rows);
  }
};
using row_scales = group_scales<whole_row>;

/// How a panel of `units` units is multiplied with grouped activations: `groups` times scale_bytes of the weights'
/// scales, then `blocks` blocks of 32.
template <class Panel>
struct sum_groups {
  std::int64_t groups, blocks;
  explicit sum_groups(std::int64_t units)
      : groups(Panel::whole_rows ? 1 : units), blocks(Panel::whole_rows ? units : Panel::blocks) {}
};

/// The weights' scales of a group as f32, read before its codes: hardware prefetchers want ascending addresses (Zen 4,
/// Q4_G128, one row: 71 us instead of 79).
template <class Panel>
struct weight_scales {
  using S = typename Panel::simd_type;
  alignas(64) float d[Panel::cols];
  explicit weight_scales(const std::byte* from) {
    for (int v = 0; v < 2; ++v) S::store(d + v * S::width, Panel::scale(from, v));
  }
  auto at(int v) const { return S::load(d + v * S::width); }
};

/// Where the share of the panel begins that is prefetched with a block.
template <class Panel>
constexpr std::size_t block_share(std::int64_t block) {
  return static_cast<std::size_t>(block) * (Panel::unit_bytes / Panel::blocks);
}

/// Largest: of the codes.
template <dtype Weight, class S, class Codes, int Largest>
struct channel_panel {
  using simd_type = S;
  using codes = Codes;
  static constexpr dtype weight = Weight;
  static constexpr int zero = zero_point(Weight);
  static constexpr int largest = Largest;
  static constexpr int halves = 1;
  static constexpr int cols = 2 * S::width;
  static constexpr int blocks = 1;
  static constexpr std::int64_t elements = 32;
  static constexpr std::size_t unit_bytes = Codes::bytes;
  static constexpr std::size_t header_bytes = cols * sizeof(float);
  static constexpr std::size_t block_bytes = unit_bytes;

  static constexpr bool whole_rows = true;
  static constexpr std::size_t scale_bytes = header_bytes;
  static auto scale(const std::byte* header, int v) {
    return S::load(reinterpret_cast<const float*>(header) + v * S::width);
  }

  static void pack(const std::byte* rows, std::size_t stride, int n, std::int64_t k, std::byte* panel) {
    std::memset(panel, 0, header_bytes);
    for (int c = 0; c < n; ++c)
      std::memcpy(panel + 4 * c, rows + static_cast<std::size_t>(c) * stride, row_header_bytes);
    panel += header_bytes;
    for (std::int64_t i = 0; i < k; i += elements, panel += unit_bytes) {
      alignas(64) typename Codes::words words;
      for (int c = 0; c < cols; ++c) {
        alignas(64) std::uint8_t code[32];
        std::memset(code, zero, sizeof code);
        if (c < n)
          take(reinterpret_cast<file_bytes>(rows) + static_cast<std::size_t>(c) * stride + row_header_bytes, i,
               least(32, k - i), code);
        for (int s = 0; s < 8; ++s) std::memcpy(&words[s][c], code + 4 * s, 4);
      }
      Codes::put(words, panel);
    }
  }

 private:
  /// Codes first .. first + count - 1 of a row.
  static void take(file_bytes row, std::int64_t first, std::int64_t count, std::uint8_t* code) {
    if constexpr (Weight == dtype::q8_channel) {
      for (std::int64_t j = 0; j < count; ++j) code[j] = row[first + j] ^ 0x80;
    } else {
      std::int64_t j = 0;
      for (; j + 8 <= count; j += 8) {
        std::uint32_t four;
        __builtin_memcpy(&four, row + (first + j) / 2, 4);
        std::uint64_t spread = four;  // a byte every two bytes
        spread = (spread | spread << 16) & 0x0000ffff0000ffffu;
        spread = (spread | spread << 8) & 0x00ff00ff00ff00ffu;
        spread = (spread & 0x000f000f000f000fu) | (spread & 0x00f000f000f000f0u) << 4;
        __builtin_memcpy(code + j, &spread, 8);
      }
      for (; j < count; j += 2) {
        const std::uint8_t two = row[(first + j) / 2];
        code[j] = two & 15;
        code[j + 1] = two >> 4;
      }
    }
  }
};

template <dtype Weight, class S>
struct channel_panel_of;
template <class S>
struct channel_panel_of<dtype::q8_channel, S> {
  using type_name = channel_panel<dtype::q8_channel, S, whole_bytes<S>, 255>;
};
template <class S>
struct channel_panel_of<dtype::q4_channel, S> {
  using type_name = channel_panel<dtype::q4_channel, S, nibbles<S>, 15>;
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
