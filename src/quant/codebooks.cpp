#include "src/quant/codebooks.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "flywheel/formats/iq1_m.hpp"
#include "flywheel/formats/iq1_s.hpp"
#include "flywheel/formats/iq2_s.hpp"
#include "flywheel/formats/iq2_xs.hpp"
#include "flywheel/formats/iq2_xxs.hpp"
#include "flywheel/formats/iq3_s.hpp"
#include "flywheel/formats/iq3_xxs.hpp"
#include "src/quant/codebook_search.hpp"

namespace flywheel::inline v0::quant {
namespace {

/// A codebook as the kernels take it: [dims][points].
template <std::size_t Dims, std::size_t Points, std::size_t Levels>
constexpr std::array<std::int8_t, Dims * Points> spread(const std::uint16_t (&points)[Points],
                                                        const std::int8_t (&levels)[Levels]) {
  constexpr int bits = std::countr_zero(Levels);
  std::array<std::int8_t, Dims * Points> out{};
  for (std::size_t p = 0; p < Points; ++p)
    for (std::size_t i = 0; i < Dims; ++i)
      out[i * Points + p] = levels[(points[p] >> (bits * static_cast<int>(i))) & (Levels - 1)];
  return out;
}

alignas(64) constexpr auto iq2_xxs_table = spread<8>(formats::iq2_xxs_points, formats::iq2_levels);
alignas(64) constexpr auto iq2_xs_table = spread<8>(formats::iq2_xs_points, formats::iq2_levels);
alignas(64) constexpr auto iq2_s_table = spread<8>(formats::iq2_s_points, formats::iq2_levels);
alignas(64) constexpr auto iq3_xxs_table = spread<4>(formats::iq3_xxs_points, formats::iq3_xxs_levels);
alignas(64) constexpr auto iq3_s_table = spread<4>(formats::iq3_s_points, formats::iq3_s_levels);

/// IQ1's points by halves; they ascend, so that points with the same second half follow each other.
struct ternary_table {
  std::array<std::uint16_t, 2048 + 3 * 81> low{};
  std::array<std::uint16_t, 82> first{}, number{};
};

constexpr ternary_table by_halves() {
  ternary_table t;
  const auto digits = [](unsigned half) {
    return (half & 3) + 3 * (half >> 2 & 3) + 9 * (half >> 4 & 3) + 27 * (half >> 6);
  };
  std::size_t p = 0, at = 0;
  for (std::size_t h = 0; h < 81; ++h) {
    t.number[h] = static_cast<std::uint16_t>(p);
    t.first[h] = static_cast<std::uint16_t>(at);
    for (; p < 2048 && digits(formats::iq1_points[p] >> 8) == h; ++p)
      t.low[at++] = static_cast<std::uint16_t>(16 * digits(formats::iq1_points[p] & 255U));
    for (; at % 4 != 0; ++at) t.low[at] = t.low[at - 1];
  }
  t.number[81] = static_cast<std::uint16_t>(p);
  t.first[81] = static_cast<std::uint16_t>(at);
  return t;
}

constexpr ternary_table iq1_table = by_halves();
static_assert(iq1_table.number[81] == 2048, "the points must ascend");
constexpr ternary_points iq1_ternary = {{iq1_table.low.data(), iq1_table.first.data()}, iq1_table.number.data()};

constexpr codebook books[] = {
    {dtype::iq2_xxs, freedom::even_group, 8, 8, 15, 0.125F, 23.1F, 43, 256, iq2_xxs_table.data(), nullptr},
    {dtype::iq2_xs, freedom::even_group, 8, 16, 15, 0.125F, 24.2F, 43, 512, iq2_xs_table.data(), nullptr},
    {dtype::iq2_s, freedom::none, 8, 16, 15, 0.125F, 24.4F, 43, 1024, iq2_s_table.data(), nullptr},
    {dtype::iq3_xxs, freedom::even_pair, 4, 8, 15, 0.25F, 30.8F, 62, 256, iq3_xxs_table.data(), nullptr},
    {dtype::iq3_s, freedom::none, 4, 8, 15, 1, 7.6F, 15, 512, iq3_s_table.data(), nullptr},
    {dtype::iq1_s, freedom::shift_sub_block, 8, 8, 7, 0.125F, 6.2F, 9, 2048, nullptr, &iq1_ternary},
    {dtype::iq1_m, freedom::shift_group, 8, 16, 7, 0.125F, 6.2F, 9, 2048, nullptr, &iq1_ternary},
};

constexpr const codebook& book_of(dtype type) {
  for (const codebook& one : books)
    if (one.type == type) return one;
  return books[0];
}

/// Bytes of a block.
template <dtype Type>
void store(const block_encoder& from, std::byte* out) noexcept {
  using formats::store_u16;
  using formats::store_u32;
  const block_choice& c = from.result();
  typename formats::codec<Type>::block b{};
  const auto byte = [](unsigned value) { return static_cast<std::uint8_t>(value); };
  const auto add = [&](std::uint8_t& to, unsigned value) { to = byte(to | value); };
  if constexpr (Type != dtype::iq1_m) store_u16(b.d, c.d);
  if constexpr (Type == dtype::iq2_xxs) {
    for (std::size_t j = 0; j < 8; ++j) {
      std::uint32_t rest = static_cast<std::uint32_t>(c.code[j]) << 28;
      for (std::size_t l = 0; l < 4; ++l) {
        b.qs[8 * j + l] = byte(c.point[4 * j + l]);
        rest |= (from.signs(static_cast<int>(4 * j + l)) & 127U) << (7 * l);
      }
      store_u32(b.qs + 8 * j + 4, rest);
    }
  } else if constexpr (Type == dtype::iq2_xs) {
    for (std::size_t g = 0; g < 32; ++g)
      store_u16(b.qs + 2 * g, static_cast<std::uint16_t>(c.point[g] | (from.signs(static_cast<int>(g)) & 127U) << 9));
    for (std::size_t j = 0; j < 16; ++j) add(b.scales[j / 2], static_cast<unsigned>(c.code[j]) << (4 * (j % 2)));
  } else if constexpr (Type == dtype::iq2_s) {
    for (std::size_t g = 0; g < 32; ++g) {
      b.qs[g] = byte(c.point[g]);
      b.signs[g] = byte(from.signs(static_cast<int>(g)));
      add(b.qh[g / 4], static_cast<unsigned>(c.point[g] >> 8) << (2 * (g % 4)));
    }
    for (std::size_t j = 0; j < 16; ++j) add(b.scales[j / 2], static_cast<unsigned>(c.code[j]) << (4 * (j % 2)));
  } else if constexpr (Type == dtype::iq3_xxs) {
    for (std::size_t g = 0; g < 64; ++g) b.qs[g] = byte(c.point[g]);
    for (std::size_t j = 0; j < 8; ++j) {
      std::uint32_t rest = static_cast<std::uint32_t>(c.code[j]) << 28;
      for (std::size_t l = 0; l < 4; ++l) rest |= (from.signs(static_cast<int>(4 * j + l)) & 127U) << (7 * l);
      store_u32(b.signs_and_scales + 4 * j, rest);
    }
  } else if constexpr (Type == dtype::iq3_s) {
    for (std::size_t g = 0; g < 64; ++g) {
      b.qs[g] = byte(c.point[g]);
      add(b.qh[g / 8], static_cast<unsigned>(c.point[g] >> 8) << (g % 8));
    }
    for (std::size_t g = 0; g < 32; ++g) b.signs[g] = byte(from.signs(static_cast<int>(g)));
    for (std::size_t j = 0; j < 8; ++j) add(b.scales[j / 2], static_cast<unsigned>(c.code[j]) << (4 * (j % 2)));
  } else if constexpr (Type == dtype::iq1_s) {
    for (std::size_t j = 0; j < 8; ++j) {
      unsigned high = static_cast<unsigned>(c.code[j]) << 12 | static_cast<unsigned>(c.variant[4 * j]) << 15;
      for (std::size_t l = 0; l < 4; ++l) {
        b.qs[4 * j + l] = byte(c.point[4 * j + l]);
        high |= static_cast<unsigned>(c.point[4 * j + l] >> 8) << (3 * l);
      }
      store_u16(b.qh + 2 * j, static_cast<std::uint16_t>(high));
    }
  } else {
    static_assert(Type == dtype::iq1_m);
    for (std::size_t g = 0; g < 32; ++g) {
      b.qs[g] = byte(c.point[g]);
      add(b.qh[g / 2], (static_cast<unsigned>(c.point[g] >> 8) | static_cast<unsigned>(c.variant[g]) << 3)
                           << (4 * (g % 2)));
    }
    for (std::size_t i = 0; i < 4; ++i) {
      unsigned word = ((c.d >> (4 * i)) & 15U) << 12;
      for (std::size_t j = 0; j < 4; ++j) word |= static_cast<unsigned>(c.code[4 * i + j]) << (3 * j);
      store_u16(b.scales + 2 * i, static_cast<std::uint16_t>(word));
    }
  }
  std::memcpy(out, &b, sizeof b);
}

template <dtype Type>
void encode(const kernels::quantize_args& args, const kernels::kernel_set& kernels, float* scratch) {
  block_encoder encoder(book_of(Type), kernels, scratch);
  constexpr std::size_t bytes = info(Type)->block_bytes;
  const float* x = args.x;
  std::byte* out = args.out;
  for (std::int64_t row = 0; row < args.rows; ++row)
    for (std::int64_t i = 0; i < args.cols; i += 256, x += 256, out += bytes) {
      const float* importance = args.importance != nullptr ? args.importance + i : nullptr;
      if (encoder.encode(x, importance, args.importance_factor, args.method))
        store<Type>(encoder, out);
      else
        std::memset(out, 0, bytes);
    }
}

template <dtype Type>
constexpr codebook_format format(bool wants_importance) {
  return {Type, wants_importance, book_of(Type).scratch(), encode<Type>};
}

constexpr codebook_format formats_table[] = {
    format<dtype::iq2_xxs>(true), format<dtype::iq2_xs>(true), format<dtype::iq2_s>(true), format<dtype::iq3_xxs>(true),
    format<dtype::iq3_s>(false),  format<dtype::iq1_s>(true),  format<dtype::iq1_m>(true),
};

}  // namespace

std::span<const codebook_format> codebook_formats() noexcept { return formats_table; }

}  // namespace flywheel::inline v0::quant
