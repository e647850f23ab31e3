// The levels of scalar formats: value = scale * level. Each policy has
//   lowest, highest;                the range of levels
//   peak;                           the level of largest magnitude, where nearest rounding puts the largest value
//   lopsided;                       whether -d is another scale than d: the levels are not those of the other sign
//   widest, narrowest;              scales worth trying, relative to the one that puts the largest value on `peak`
//   tries;                          how many of them
//   count, at(code);                the codes, and the level of each
//   nearest(y), code(y);            the level nearest to y, and its code, for each lane
#pragma once

#include <cstdint>

#include "flywheel/formats/encoding/lanes.hpp"

namespace flywheel::inline v0::formats::encoding {

/// Integers Lo .. Hi; code 0 is Lo.
template <class S, int Lo, int Hi>
struct integer_levels {
  using V = lanes<S>;
  static constexpr float lowest = Lo, highest = Hi;
  static constexpr float peak = -Lo > Hi ? Lo : Hi;
  static constexpr bool lopsided = -Lo != Hi;
  static constexpr int count = Hi - Lo + 1;
  static constexpr float widest = count > 100 ? 1.004F : count > 40 ? 1.06F : count > 3 ? 1.3F : 1.02F;
  static constexpr float narrowest = count > 100  ? 0.985F
                                     : count > 40 ? 0.85F
                                     : count > 12 ? 0.6F
                                     : count > 3  ? 0.4F
                                                  : 0.12F;
  static constexpr int tries = count > 16 && count <= 64 ? 12 : 8;
  static constexpr float at(int code) noexcept { return static_cast<float>(code + Lo); }
  static V nearest(V y) { return round_within(y, lowest, highest); }
  static V code(V y) { return nearest(y) - V::all(lowest); }
};

/// -1 and 1: Q1_0.
template <class S>
struct sign_levels {
  using V = lanes<S>;
  static constexpr float lowest = -1, highest = 1, peak = 1;
  static constexpr bool lopsided = false;
  static constexpr int count = 2;
  static constexpr float widest = 1, narrowest = 0.1F;
  static constexpr int tries = 2;  // codes do not depend on the scale, which least squares finds
  static constexpr float at(int code) noexcept { return code != 0 ? 1.0F : -1.0F; }
  static V nearest(V y) { return select(y < V::all(0), V::all(-1), V::all(1)); }
  static V code(V y) { return select(y < V::all(0), V::all(0), V::all(1)); }
};

/// The levels of IQ4_NL and IQ4_XS: formats/iq4_nl.hpp's, in floats of this S's own (src/quant/grid.cpp compares).
template <class S>
struct iq4_levels_of {
  using V = lanes<S>;
  static constexpr float table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static constexpr float lowest = -127, highest = 113, peak = -127;
  static constexpr bool lopsided = true;
  static constexpr int count = 16;
  static constexpr float widest = 1.25F, narrowest = 0.6F;
  static constexpr int tries = 8;
  static constexpr float at(int code) noexcept { return table[code]; }
  static V nearest(V y) { return pick(table, y); }
  static V code(V y) { return pick(codes, y); }

 private:
  struct thresholds_type {
    float at[24];
  };
  static constexpr thresholds_type make_thresholds() noexcept {
    thresholds_type t{};
    for (int i = 0; i < 15; ++i) t.at[i] = (table[i] + table[i + 1]) / 2;
    return t;
  }
  static constexpr float codes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static constexpr thresholds_type thresholds = make_thresholds();

  static V pick(const float* values, V y) {
    if constexpr (requires { S::pick_16(values, values, y.v); }) {
      return S::pick_16(thresholds.at, values, y.v);
    } else {
      V found = V::all(values[0]);
      for (int i = 0; i < 15; ++i) found = select(V::all(thresholds.at[i]) < y, V::all(values[i + 1]), found);
      return found;
    }
  }
};

/// Twice the values of E2M1: formats/mxfp4.hpp's, in floats of this S's own.
template <class S>
struct fp4_levels_of {
  using V = lanes<S>;
  static constexpr float table[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  static constexpr float lowest = -12, highest = 12, peak = 12;
  static constexpr bool lopsided = false;
  static constexpr int count = 16;
  static constexpr float at(int code) noexcept { return code < 8 ? table[code] : -table[code - 8]; }
  static V nearest(V y) {
    const V x = magnitude(y);
    V level = V::all(0);
    for (int i = 0; i < 7; ++i) level = select(V::all((table[i] + table[i + 1]) / 2) < x, V::all(table[i + 1]), level);
    return select(y < V::all(0), V::all(0) - level, level);
  }
  static V code(V y) {
    const V x = magnitude(y);
    V index = V::all(0);
    for (int i = 0; i < 7; ++i)
      index = select(V::all((table[i] + table[i + 1]) / 2) < x, V::all(static_cast<float>(i + 1)), index);
    // Small negative values are 0, not -0.
    return select(y < V::all(-0.5F), index + V::all(8), index);
  }
};

}  // namespace flywheel::inline v0::formats::encoding
