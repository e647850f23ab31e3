// Every scalar format as an encoder sees it: how its groups lie in a block, which levels and scales they have, and
// where the bytes go. scheme<S, dtype> has
//   kind;                        which of block_fit's algorithms finds the scales
//   group, groups;               values under one scale; groups in a block
//   levels;                      a policy of levels.hpp (offset formats: codes 0 .. highest)
//   lowest_scale, highest_scale; of the stored integers of two-level formats
//   pack(fields, codes, out);    writes a block; codes [group * groups] in order of the values
// The layouts are described where they are decoded: formats/<format>.hpp.
#pragma once

#include <cstdint>

#include "flywheel/core/dtype.hpp"
#include "flywheel/formats/encoding/levels.hpp"

namespace flywheel::inline v0::formats::encoding {

enum class scaling : std::uint8_t {
  scale,        ///< d l, d an f16 (f32 where a row is one group)
  line,         ///< d q + m, both f16
  scales,       ///< d s l: an f16 for the block, an integer per group
  lines,        ///< d s q - dmin m: two f16 for the block, two integers per group
  float_scales  ///< f(s) l: per group a tiny float without a sign (E8M0, UE4M3)
};

/// What a block stores besides its codes.
struct fields {
  float d;     ///< As it will be stored.
  float dmin;  ///< The scale of minima; for scaling::line the offset m.
  std::int8_t scale[16];
  std::uint8_t minimum[16];
};

/// Codes to bytes, for each S its own.
template <class S>
struct packing {
  using u8 = std::uint8_t;
  static void f16(u8* out, float x) {
    alignas(64) std::uint16_t halves[S::width];
    S::store_f16(halves, S::set1(x));
    out[0] = static_cast<u8>(halves[0]);
    out[1] = static_cast<u8>(halves[0] >> 8);
  }
  /// Low nibbles: `half` values; high nibbles: the next `half`.
  static void nibbles(const u8* codes, int half, u8* out) {
    for (int j = 0; j < half; ++j) out[j] = static_cast<u8>((codes[j] & 15) | (codes[j + half] << 4));
  }
  /// Bit j of a little-endian number is bit `bit` of codes[j].
  static void bits(const u8* codes, int n, int bit, u8* out) {
    for (int j = 0; j < n; j += 8) {
      int byte = 0;
      for (int k = 0; k < 8; ++k) byte |= ((codes[j + k] >> bit) & 1) << k;
      out[j / 8] = static_cast<u8>(byte);
    }
  }
  /// Four planes of two bits, `plane` values each: bits `from`, from + 1 of the codes.
  static void planes(const u8* codes, int plane, int from, u8* out) {
    for (int l = 0; l < plane; ++l) {
      int byte = 0;
      for (int p = 0; p < 4; ++p) byte |= ((codes[p * plane + l] >> from) & 3) << (2 * p);
      out[l] = static_cast<u8>(byte);
    }
  }
  /// k_scales.hpp.
  static void k_scales(const fields& f, u8* out) {
    for (int j = 0; j < 4; ++j) {
      const int low = static_cast<u8>(f.scale[j + 4]), min = f.minimum[j + 4];
      out[j] = static_cast<u8>(f.scale[j] | ((low >> 4) << 6));
      out[j + 4] = static_cast<u8>(f.minimum[j] | ((min >> 4) << 6));
      out[j + 8] = static_cast<u8>((low & 15) | ((min & 15) << 4));
    }
  }
};

template <class S, dtype Type>
struct scheme;

template <class S, int Group, class Levels>
struct scale_scheme {
  static constexpr scaling kind = scaling::scale;
  static constexpr int group = Group, groups = 1;
  using levels = Levels;
};

template <class S>
struct scheme<S, dtype::q4_0> : scale_scheme<S, 32, integer_levels<S, -8, 7>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::nibbles(codes, 16, out + 2);
  }
};

template <class S>
struct scheme<S, dtype::iq4_nl> : scale_scheme<S, 32, iq4_levels_of<S>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::nibbles(codes, 16, out + 2);
  }
};

template <class S>
struct scheme<S, dtype::q5_0> : scale_scheme<S, 32, integer_levels<S, -16, 15>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::bits(codes, 32, 4, out + 2);
    packing<S>::nibbles(codes, 16, out + 6);
  }
};

template <class S, int Group>
struct bytes_scheme : scale_scheme<S, Group, integer_levels<S, -127, 127>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    for (int j = 0; j < Group; ++j) out[2 + j] = static_cast<std::uint8_t>(codes[j] - 127);
  }
};
template <class S>
struct scheme<S, dtype::q8_0> : bytes_scheme<S, 32> {};
template <class S>
struct scheme<S, dtype::q8_g128> : bytes_scheme<S, 128> {};

template <class S>
struct scheme<S, dtype::q4_g128> : scale_scheme<S, 128, integer_levels<S, -8, 7>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::nibbles(codes, 64, out + 2);
  }
};

/// A row is one group; put(codes, n, out) stores the codes of n values where those of the first belong.
template <class S>
struct scheme<S, dtype::q8_channel> : scale_scheme<S, 0, integer_levels<S, -127, 127>> {
  static void put(const std::uint8_t* codes, std::int64_t n, std::uint8_t* out) {
    for (std::int64_t j = 0; j < n; ++j) out[j] = static_cast<std::uint8_t>(codes[j] - 127);
  }
};
template <class S>
struct scheme<S, dtype::q4_channel> : scale_scheme<S, 0, integer_levels<S, -8, 7>> {
  static void put(const std::uint8_t* codes, std::int64_t n, std::uint8_t* out) {
    for (std::int64_t j = 0; j + 1 < n; j += 2) out[j / 2] = static_cast<std::uint8_t>(codes[j] | (codes[j + 1] << 4));
  }
};

template <class S>
struct scheme<S, dtype::tq1_0> : scale_scheme<S, 256, integer_levels<S, -1, 1>> {
  static void digits(const std::uint8_t* codes, int count, int n, std::uint8_t* out) {
    for (int i = 0; i < count; ++i) {
      int value = 0;
      for (int k = 0; k < 5; ++k) value = 3 * value + (k < n ? codes[k * count + i] : 0);
      out[i] = static_cast<std::uint8_t>((value * 256 + 242) / 243);  // the least byte whose fraction begins so
    }
  }
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    digits(codes, 32, 5, out);
    digits(codes + 160, 16, 5, out + 32);
    digits(codes + 240, 4, 4, out + 48);
    packing<S>::f16(out + 52, f.d);
  }
};

template <class S>
struct scheme<S, dtype::tq2_0> : scale_scheme<S, 256, integer_levels<S, -1, 1>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::planes(codes, 32, 0, out);
    packing<S>::planes(codes + 128, 32, 0, out + 32);
    packing<S>::f16(out + 64, f.d);
  }
};

template <class S>
struct scheme<S, dtype::q1_0> : scale_scheme<S, 128, sign_levels<S>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::bits(codes, 128, 0, out + 2);
  }
};

template <class S>
struct scheme<S, dtype::q2_0> : scale_scheme<S, 64, integer_levels<S, -1, 2>> {
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    for (int j = 0; j < 16; ++j) packing<S>::planes(codes + 4 * j, 1, 0, out + 2 + j);
  }
};

template <class S>
struct scheme<S, dtype::q4_1> {
  static constexpr scaling kind = scaling::line;
  static constexpr int group = 32, groups = 1;
  using levels = integer_levels<S, 0, 15>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::f16(out + 2, f.dmin);
    packing<S>::nibbles(codes, 16, out + 4);
  }
};

template <class S>
struct scheme<S, dtype::q5_1> {
  static constexpr scaling kind = scaling::line;
  static constexpr int group = 32, groups = 1;
  using levels = integer_levels<S, 0, 31>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::f16(out + 2, f.dmin);
    packing<S>::bits(codes, 32, 4, out + 4);
    packing<S>::nibbles(codes, 16, out + 8);
  }
};

template <class S>
struct scheme<S, dtype::q2_k> {
  static constexpr scaling kind = scaling::lines;
  static constexpr int group = 16, groups = 16;
  static constexpr float lowest_scale = 0, highest_scale = 15;
  using levels = integer_levels<S, 0, 3>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    for (int j = 0; j < 16; ++j) out[j] = static_cast<std::uint8_t>(f.scale[j] | (f.minimum[j] << 4));
    packing<S>::planes(codes, 32, 0, out + 16);
    packing<S>::planes(codes + 128, 32, 0, out + 48);
    packing<S>::f16(out + 80, f.d);
    packing<S>::f16(out + 82, f.dmin);
  }
};

template <class S>
struct scheme<S, dtype::q4_k> {
  static constexpr scaling kind = scaling::lines;
  static constexpr int group = 32, groups = 8;
  static constexpr float lowest_scale = 0, highest_scale = 63;
  using levels = integer_levels<S, 0, 15>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::f16(out + 2, f.dmin);
    packing<S>::k_scales(f, out + 4);
    for (int j = 0; j < 4; ++j) packing<S>::nibbles(codes + 64 * j, 32, out + 16 + 32 * j);
  }
};

template <class S>
struct scheme<S, dtype::q5_k> {
  static constexpr scaling kind = scaling::lines;
  static constexpr int group = 32, groups = 8;
  static constexpr float lowest_scale = 0, highest_scale = 63;
  using levels = integer_levels<S, 0, 31>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    packing<S>::f16(out + 2, f.dmin);
    packing<S>::k_scales(f, out + 4);
    for (int l = 0; l < 32; ++l) {
      int fifth = 0;
      for (int j = 0; j < 8; ++j) fifth |= (codes[32 * j + l] >> 4) << j;
      out[16 + l] = static_cast<std::uint8_t>(fifth);
    }
    for (int j = 0; j < 4; ++j) packing<S>::nibbles(codes + 64 * j, 32, out + 48 + 32 * j);
  }
};

template <class S>
struct scheme<S, dtype::q3_k> {
  static constexpr scaling kind = scaling::scales;
  static constexpr int group = 16, groups = 16;
  static constexpr float lowest_scale = -32, highest_scale = 31;
  using levels = integer_levels<S, -4, 3>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    for (int l = 0; l < 32; ++l) {
      int third = 0;
      for (int j = 0; j < 8; ++j) third |= (codes[32 * j + l] >> 2) << j;
      out[l] = static_cast<std::uint8_t>(third);
    }
    packing<S>::planes(codes, 32, 0, out + 32);
    packing<S>::planes(codes + 128, 32, 0, out + 64);
    for (int j = 0; j < 12; ++j) out[96 + j] = 0;
    for (int j = 0; j < 16; ++j) {
      const int s = f.scale[j] + 32;
      out[96 + j % 8] = static_cast<std::uint8_t>(out[96 + j % 8] | ((s & 15) << (j < 8 ? 0 : 4)));
      out[104 + j % 4] = static_cast<std::uint8_t>(out[104 + j % 4] | ((s >> 4) << (2 * (j / 4))));
    }
    packing<S>::f16(out + 108, f.d);
  }
};

template <class S>
struct scheme<S, dtype::q6_k> {
  static constexpr scaling kind = scaling::scales;
  static constexpr int group = 16, groups = 16;
  static constexpr float lowest_scale = -128, highest_scale = 127;
  using levels = integer_levels<S, -32, 31>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t* c = codes + 128 * half;
      packing<S>::nibbles(c, 64, out + 64 * half);
      packing<S>::planes(c, 32, 4, out + 128 + 32 * half);
    }
    for (int j = 0; j < 16; ++j) out[192 + j] = static_cast<std::uint8_t>(f.scale[j]);
    packing<S>::f16(out + 208, f.d);
  }
};

template <class S>
struct scheme<S, dtype::iq4_xs> {
  static constexpr scaling kind = scaling::scales;
  static constexpr int group = 32, groups = 8;
  static constexpr float lowest_scale = -32, highest_scale = 31;
  using levels = iq4_levels_of<S>;
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    packing<S>::f16(out, f.d);
    for (int j = 2; j < 8; ++j) out[j] = 0;
    for (int j = 0; j < 8; ++j) {
      const int s = f.scale[j] + 32;
      out[2 + j / 4] = static_cast<std::uint8_t>(out[2 + j / 4] | ((s >> 4) << (2 * (j % 4))));
      out[4 + j / 2] = static_cast<std::uint8_t>(out[4 + j / 2] | ((s & 15) << (4 * (j % 2))));
      packing<S>::nibbles(codes + 32 * j, 16, out + 8 + 16 * j);
    }
  }
};

/// Powers of two, E8M0. scale_of(code) goes with fp4_levels, twice the values.
template <class S>
struct scheme<S, dtype::mxfp4> {
  static constexpr scaling kind = scaling::float_scales;
  static constexpr int group = 32, groups = 1;
  static constexpr int largest_code = 254, below = 1, above = 2;  ///< Codes worth trying around the nominal one.
  static constexpr float nominal_level = 8;  ///< OCP Microscaling Formats 1.0, 6.3: floor(log2(peak)) - 2.
  static constexpr bool rounds_down = true;
  using levels = fp4_levels_of<S>;
  static constexpr float scale_of(int code) {
    return __builtin_bit_cast(float, code < 2 ? 0x00200000U << code : static_cast<std::uint32_t>(code - 1) << 23);
  }
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    out[0] = static_cast<std::uint8_t>(f.scale[0]);
    packing<S>::nibbles(codes, 16, out + 1);
  }
};

/// UE4M3, eight codes per power of two.
template <class S>
struct scheme<S, dtype::nvfp4> {
  static constexpr scaling kind = scaling::float_scales;
  static constexpr int group = 16, groups = 4;
  static constexpr int largest_code = 0x7E, below = 7, above = 4;
  static constexpr float nominal_level = 12;
  static constexpr bool rounds_down = false;
  using levels = fp4_levels_of<S>;
  static constexpr float scale_of(int code) {
    return code < 8 ? static_cast<float>(code) * 0x1p-10F
                    : __builtin_bit_cast(float, (static_cast<std::uint32_t>(code) << 20) + (119U << 23));
  }
  static void pack(const fields& f, const std::uint8_t* codes, std::uint8_t* out) {
    for (int j = 0; j < 4; ++j) {
      out[j] = static_cast<std::uint8_t>(f.scale[j]);
      packing<S>::nibbles(codes + 16 * j, 8, out + 4 + 8 * j);
    }
  }
};

}  // namespace flywheel::inline v0::formats::encoding
