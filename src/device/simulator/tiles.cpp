// Products and sums of f32 are not fused here (cmake/options.cmake): plugin.h rounds each once.
#include "src/device/simulator/tiles.hpp"

#include <algorithm>
#include <cstring>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

/// Elements along k that go through the registers at once.
constexpr std::int64_t register_depth = 512;

constexpr std::uint32_t strip_width = 32;

// `run`: elements along k that lie side by side. `low`, `high`: which elements byte j of a tile of 4 bits holds.
struct quads {
  static constexpr std::uint32_t tile_k = 32, elements = strip_width * tile_k, run = 4;
  static constexpr std::uint32_t number(std::uint32_t channel, std::uint32_t i) {
    return i / 4 * 4 * strip_width + 4 * channel + i % 4;
  }
  static constexpr std::uint32_t low(std::uint32_t j) { return j; }
  static constexpr std::uint32_t high(std::uint32_t j) { return j + elements / 2; }
};

struct columns {
  static constexpr std::uint32_t n_columns = 4, tile_n = strip_width / n_columns;
  static constexpr std::uint32_t tile_k = 8, elements = strip_width * tile_k, run = tile_k;
  static constexpr std::uint32_t number(std::uint32_t channel, std::uint32_t i) {
    return channel % n_columns * tile_n * tile_k + channel / n_columns * tile_k + i;
  }
  static constexpr std::uint32_t low(std::uint32_t j) { return 2 * j; }
  static constexpr std::uint32_t high(std::uint32_t j) { return 2 * j + 1; }
};

/// Between a tile in memory and its codes [strip_width, tile_k].
template <class Order, int Bits>
struct layout {
  static constexpr std::uint32_t tile_k = Order::tile_k;
  static constexpr std::size_t tile_bytes = Order::elements * Bits / 8;
  using codes = std::int8_t[Order::elements];

  static void write(const codes& from, std::byte* tile) noexcept {
    codes numbers;
    for (std::uint32_t c = 0; c < strip_width; ++c)
      for (std::uint32_t i = 0; i < tile_k; i += Order::run)
        std::memcpy(numbers + Order::number(c, i), from + c * tile_k + i, Order::run);
    if constexpr (Bits == 8)
      std::memcpy(tile, numbers, tile_bytes);
    else
      for (std::uint32_t j = 0; j < tile_bytes; ++j)
        tile[j] = static_cast<std::byte>((numbers[Order::low(j)] & 15) | (numbers[Order::high(j)] & 15) << 4);
  }
  static void read(const std::byte* tile, codes& out) noexcept {
    codes numbers;
    if constexpr (Bits == 8)
      std::memcpy(numbers, tile, tile_bytes);
    else
      for (std::uint32_t j = 0; j < tile_bytes; ++j) {
        const int byte = std::to_integer<int>(tile[j]);
        numbers[Order::low(j)] = static_cast<std::int8_t>(((byte & 15) ^ 8) - 8);
        numbers[Order::high(j)] = static_cast<std::int8_t>(((byte >> 4) ^ 8) - 8);
      }
    for (std::uint32_t c = 0; c < strip_width; ++c)
      for (std::uint32_t i = 0; i < tile_k; i += Order::run)
        std::memcpy(out + c * tile_k + i, numbers + Order::number(c, i), Order::run);
  }
};

/// Calls `f` with the layout of these weights.
template <class F>
auto with_layout(const profile& p, std::int32_t bits, F&& f) noexcept {
  if (p.order == tile_order::quads) return bits == 8 ? f(layout<quads, 8>{}) : f(layout<quads, 4>{});
  return bits == 8 ? f(layout<columns, 8>{}) : f(layout<columns, 4>{});
}

std::size_t s(std::int64_t x) noexcept { return static_cast<std::size_t>(x); }

/// Exact: plugin.h bounds k so that no sum overflows.
std::int32_t dot(const std::int16_t* a, const std::int16_t* b, std::int64_t n) noexcept {
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::int32_t{a[i]} * std::int32_t{b[i]};
  return sum;
}

}  // namespace

std::uint64_t strip_bytes(const profile& p, const product& of) noexcept {
  return code_bytes(p, of.bits, rounded_up(of.k, p.tile_k)) + s(of.groups()) * p.strip() * sizeof(float);
}

std::uint64_t packed_bytes(const profile& p, const product& of) noexcept {
  return s(blocks_of(of.n, p.strip())) * strip_bytes(p, of);
}

bool pack_weights(const profile& p, const product& of, const std::int8_t* codes, const float* scales,
                  std::byte* out) noexcept {
  const int least = of.bits == 8 ? -127 : -8, most = of.bits == 8 ? 127 : 7;
  const std::size_t n = s(of.n), k = s(of.k), groups = s(of.groups());
  int smallest = 0, largest = 0;
  with_layout(p, of.bits, [&](auto format) {
    using tiles = decltype(format);
    for (std::size_t first = 0; first < n; first += strip_width) {
      const std::size_t channels = std::min<std::size_t>(strip_width, n - first);
      for (std::size_t at = 0; at < k; at += tiles::tile_k, out += tiles::tile_bytes) {
        const std::size_t depth = std::min<std::size_t>(tiles::tile_k, k - at);
        typename tiles::codes tile{};
        for (std::uint32_t c = 0; c < channels; ++c)
          for (std::uint32_t i = 0; i < depth; ++i) {
            const std::int8_t code = codes[(first + c) * k + at + i];
            smallest = std::min<int>(smallest, code);
            largest = std::max<int>(largest, code);
            tile[c * tiles::tile_k + i] = code;
          }
        tiles::write(tile, out);
      }
      for (std::size_t g = 0; g < groups; ++g, out += strip_width * sizeof(float)) {
        float row[strip_width] = {};
        for (std::size_t c = 0; c < channels; ++c) row[c] = scales[(first + c) * groups + g];
        std::memcpy(out, row, sizeof row);
      }
    }
  });
  return smallest >= least && largest <= most;
}

void unpack_weights(const profile& p, const product& of, const std::byte* packed, std::int8_t* codes,
                    float* scales) noexcept {
  const std::size_t n = s(of.n), k = s(of.k), groups = s(of.groups());
  with_layout(p, of.bits, [&](auto format) {
    using tiles = decltype(format);
    for (std::size_t first = 0; first < n; first += strip_width) {
      const std::size_t channels = std::min<std::size_t>(strip_width, n - first);
      for (std::size_t at = 0; at < k; at += tiles::tile_k, packed += tiles::tile_bytes) {
        const std::size_t depth = std::min<std::size_t>(tiles::tile_k, k - at);
        typename tiles::codes tile;
        tiles::read(packed, tile);
        for (std::uint32_t c = 0; c < channels; ++c)
          std::copy_n(tile + c * tiles::tile_k, depth, codes + (first + c) * k + at);
      }
      for (std::size_t g = 0; g < groups; ++g, packed += strip_width * sizeof(float))
        for (std::size_t c = 0; c < channels; ++c)
          std::memcpy(&scales[(first + c) * groups + g], packed + c * sizeof(float), sizeof(float));
    }
  });
}

/// One block of a product: rows m0.., channels n0.., elements k0... The padded extents are whole tiles and strips.
struct matrix_unit::step {
  const product* of = nullptr;
  const scratch_layout* chip = nullptr;
  const std::byte *codes = nullptr, *scales = nullptr, *weights = nullptr;
  std::int64_t m0 = 0, n0 = 0, k0 = 0;
  std::int64_t m = 0, n = 0, k = 0;                  ///< Of this block; less at the edges.
  std::int64_t strips = 0, padded_k = 0, width = 0;  ///< `width`: channels of a full block.
  std::int64_t first_group = 0, groups = 0;
  std::size_t half = 0;
};

result<matrix_unit> matrix_unit::create(const profile& p, std::uint64_t scratch_bytes) {
  matrix_unit unit;
  unit.profile_ = &p;
  FLYWHEEL_TRY(unit.scratch_, buffer::allocate(static_cast<std::size_t>(scratch_bytes)));
  unit.weight_registers_.resize(s(strip_width * register_depth));
  unit.row_registers_.resize(s(p.tile_m * register_depth));
  return unit;
}

/// What the DMA engine does: rows of activations with zeros behind them, strips of weights as they are.
void matrix_unit::fetch(const step& st) noexcept {
  const profile& p = *profile_;
  const product& of = *st.of;
  const scratch_layout::half& at = st.chip->halves[st.half];
  std::byte* const chip = scratch_.mutable_data();
  for (std::int64_t r = 0; r < st.m; ++r) {
    std::byte* const row = chip + at.codes + s(r * st.padded_k);
    std::memcpy(row, st.codes + s((st.m0 + r) * of.k + st.k0), s(st.k));
    std::memset(row + st.k, 0, s(st.padded_k - st.k));
    std::memcpy(chip + at.scales + s(r * st.groups) * sizeof(float),
                st.scales + s((st.m0 + r) * of.groups() + st.first_group) * sizeof(float),
                s(st.groups) * sizeof(float));
  }
  const std::uint64_t strip = strip_bytes(p, of), all_codes = code_bytes(p, of.bits, rounded_up(of.k, p.tile_k));
  const std::uint64_t codes = code_bytes(p, of.bits, st.padded_k), scales = s(st.groups) * p.strip() * sizeof(float);
  for (std::int64_t i = 0; i < st.strips; ++i) {
    const std::byte* const from = st.weights + (s(st.n0) / p.strip() + s(i)) * strip;
    std::memcpy(chip + at.weights + s(i) * codes, from + code_bytes(p, of.bits, st.k0), codes);
    std::memcpy(chip + at.weight_scales + s(i) * scales,
                from + all_codes + s(st.first_group) * p.strip() * sizeof(float), scales);
  }
}

void matrix_unit::accumulate(const step& st) noexcept {
  const product& of = *st.of;
  const scratch_layout::half& at = st.chip->halves[st.half];
  std::byte* const chip = scratch_.mutable_data();
  const auto* const codes = reinterpret_cast<const std::int8_t*>(chip + at.codes);
  const auto* const x_scales = reinterpret_cast<const float*>(chip + at.scales);
  const auto* const w_scales = reinterpret_cast<const float*>(chip + at.weight_scales);
  auto* const sums = reinterpret_cast<std::int32_t*>(chip + st.chip->sums);
  auto* const results = reinterpret_cast<float*>(chip + st.chip->results);
  std::int16_t* const weight_row = weight_registers_.data();
  std::int16_t* const x_row = row_registers_.data();
  const std::int64_t depth = of.group == 0 ? register_depth : std::int64_t{of.group};

  with_layout(*profile_, of.bits, [&](auto format) {
    using tiles = decltype(format);
    const std::uint64_t strip_codes = s(st.padded_k) / tiles::tile_k * tiles::tile_bytes;
    for (std::int64_t strip = 0; strip < st.strips; ++strip)
      for (std::int64_t from = 0; from < st.padded_k; from += depth) {
        const std::int64_t run = std::min(depth, st.padded_k - from);
        const std::byte* tile =
            chip + at.weights + s(strip) * strip_codes + s(from) / tiles::tile_k * tiles::tile_bytes;
        for (std::int64_t i = 0; i < run; i += tiles::tile_k, tile += tiles::tile_bytes) {
          typename tiles::codes codes_of_tile;
          tiles::read(tile, codes_of_tile);
          for (std::uint32_t c = 0; c < strip_width; ++c)
            std::copy_n(codes_of_tile + c * tiles::tile_k, tiles::tile_k, weight_row + c * run + i);
        }

        const std::int64_t g = from / depth;  // of this block, where there are groups
        for (std::int64_t m0 = 0; m0 < st.m; m0 += profile_->tile_m) {
          const std::int64_t rows = std::min<std::int64_t>(profile_->tile_m, st.m - m0);
          for (std::int64_t r = 0; r < rows; ++r)
            std::copy_n(codes + s((m0 + r) * st.padded_k + from), s(run), x_row + r * run);
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::uint32_t c = 0; c < strip_width; ++c) {
              const std::int32_t sum = dot(x_row + r * run, weight_row + c * run, run);
              const std::size_t cell = s((m0 + r) * st.width + strip * strip_width + c);
              if (of.group == 0) {
                sums[cell] = st.k0 + from == 0 ? sum : sums[cell] + sum;
              } else {
                const float term = static_cast<float>(sum) * w_scales[s((strip * st.groups + g) * strip_width + c)] *
                                   x_scales[s((m0 + r) * st.groups + g)];
                results[cell] = st.first_group + g == 0 ? term : results[cell] + term;
              }
            }
        }
      }
  });

  if (of.group != 0 || st.k0 + st.k < of.k) return;
  for (std::int64_t r = 0; r < st.m; ++r)
    for (std::int64_t c = 0; c < st.strips * strip_width; ++c)
      results[s(r * st.width + c)] = static_cast<float>(sums[s(r * st.width + c)]) * w_scales[s(c)] * x_scales[s(r)];
}

void matrix_unit::store(const step& st, std::byte* out) noexcept {
  for (std::int64_t r = 0; r < st.m; ++r)
    std::memcpy(out + s((st.m0 + r) * st.of->n + st.n0) * sizeof(float),
                scratch_.data() + st.chip->results + s(r * st.width) * sizeof(float), s(st.n) * sizeof(float));
}

void matrix_unit::multiply(const product& of, const blocking& b, const std::byte* codes, const std::byte* scales,
                           const std::byte* weights, std::byte* out) noexcept {
  const scratch_layout chip = lay_out(*profile_, of, b);
  step st{.of = &of, .chip = &chip, .codes = codes, .scales = scales, .weights = weights, .width = b.n};
  for (st.m0 = 0; st.m0 < of.rows; st.m0 += b.m)
    for (st.n0 = 0; st.n0 < of.n; st.n0 += b.n) {
      st.m = std::min(b.m, of.rows - st.m0);
      st.n = std::min(b.n, of.n - st.n0);
      st.strips = blocks_of(st.n, profile_->strip());
      for (st.k0 = 0; st.k0 < of.k; st.k0 += b.k, st.half ^= 1) {
        st.k = std::min(b.k, of.k - st.k0);
        st.padded_k = rounded_up(st.k, profile_->tile_k);
        st.first_group = of.group == 0 ? 0 : st.k0 / of.group;
        st.groups = of.groups_in(st.k);
        fetch(st);
        accumulate(st);
      }
      store(st, out);
    }
}

}  // namespace flywheel::inline v0::device::simulation
