// Q8_CHANNEL and Q4_CHANNEL, flywheel's own: one f32 scale before each row (an output channel), symmetric, 8 and 4 bits
// per weight; what neural processing units take as "per channel".
#pragma once

#include "flywheel/formats/codec.hpp"

namespace flywheel::inline v0::formats {

/// x[j] = d * qs[j],  qs in [-127, 127]: signed bytes after d
template <>
struct codec<dtype::q8_channel> {
  static void decode_row(const std::uint8_t* row, std::int64_t n, float* out) noexcept {
    const float d = std::bit_cast<float>(load_u32(row));
    for (std::int64_t j = 0; j < n; ++j) out[j] = d * static_cast<float>(as_signed(row[row_header_bytes + j]));
  }

  static void encode_row(const float* x, std::int64_t n, std::uint8_t* row) noexcept {
    const float d = std::fabs(signed_peak(x, n)) / 127.0F;
    const float id = inverse(d);
    store_u32(row, std::bit_cast<std::uint32_t>(d));
    for (std::int64_t j = 0; j < n; ++j) row[row_header_bytes + j] = signed_level(x[j] * id, -127, 127);
  }
};

/// x[j] = d * (q[j] - 8),  q in [0, 15]: q[2 i] in the low nibble of byte i after d, q[2 i + 1] in the high one
template <>
struct codec<dtype::q4_channel> {
  static void decode_row(const std::uint8_t* row, std::int64_t n, float* out) noexcept {
    const float d = std::bit_cast<float>(load_u32(row));
    for (std::int64_t j = 0; j < n; ++j)
      out[j] = d * static_cast<float>((row[row_header_bytes + j / 2] >> (j % 2 * 4) & 15) - 8);
  }

  static void encode_row(const float* x, std::int64_t n, std::uint8_t* row) noexcept {
    const float d = signed_peak(x, n) / -8.0F;
    const float id = inverse(d);
    store_u32(row, std::bit_cast<std::uint32_t>(d));
    for (std::int64_t j = 0; j + 1 < n; j += 2)
      row[row_header_bytes + j / 2] =
          static_cast<std::uint8_t>(level(x[j] * id + 8.5F, 15) | (level(x[j + 1] * id + 8.5F, 15) << 4));
  }
};

}  // namespace flywheel::inline v0::formats
