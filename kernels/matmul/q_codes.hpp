// Other ways to keep a panel's codes, for instruction sets that want other bytes, or bytes elsewhere, than q_panels.hpp
// has. A way is a template over codes, whose `put` and `at` it changes. Include after one simd_*.hpp.
#pragma once

#include "kernels/matmul/q_channel.hpp"

namespace flywheel::inline v0::kernels {
namespace {

/// The panel with its codes kept in another way.
template <class Panel, template <class> class Way>
struct with_codes;
template <dtype Weight, class S, class Codes, class Scales, int Largest, int Halves, template <class> class Way>
struct with_codes<q_panel<Weight, S, Codes, Scales, Largest, Halves>, Way> {
  using type_name = q_panel<Weight, S, Way<Codes>, Scales, Largest, Halves>;
};
template <dtype Weight, class S, class Codes, int Largest, template <class> class Way>
struct with_codes<channel_panel<Weight, S, Codes, Largest>, Way> {
  using type_name = channel_panel<Weight, S, Way<Codes>, Largest>;
};

/// For dot products of signed bytes: codes with zero point 128 are kept less 128, so that `at` gives values; all others
/// are below 128 and stay as they are.
template <class Codes>
struct signed_codes : Codes {};

template <class S>
struct signed_codes<whole_bytes<S>> : whole_bytes<S> {
  using typename whole_bytes<S>::words;
  static void put(const words& w, std::byte* p) {
    alignas(64) words out;
    for (int s = 0; s < 8; ++s)
      for (int c = 0; c < code_bytes<S>::cols; ++c) out[s][c] = w[s][c] ^ 0x80808080u;
    whole_bytes<S>::put(out, p);
  }
};

struct signed_iq4_levels {
  alignas(16) std::uint8_t at[16];
  constexpr signed_iq4_levels() : at{} {
    for (int i = 0; i < 16; ++i) at[i] = iq4_levels_128[i] ^ 0x80;
  }
};
constexpr signed_iq4_levels iq4_levels;

template <class S>
struct signed_codes<level_nibbles<S, iq4_levels_128>> : level_nibbles<S, iq4_levels_128> {
  template <int Step>
  static typename S::bytes at(const std::byte* p, int v) {
    return S::look_up(iq4_levels.at, nibbles<S>::template at<Step>(p, v));
  }
};

/// For matrix products of two rows of eight bytes (vectors of four columns): of steps s and s + 1, s even, the vector
/// of step s is columns 0 and 1, each with eight consecutive k, that of step s + 1 is columns 2 and 3.
template <class Codes>
struct paired_codes : Codes {
  using typename Codes::words;
  static void put(const words& w, std::byte* p) {
    alignas(64) words out;
    for (int s = 0; s < 8; s += 2)
      for (int c = 0; c < Codes::cols; ++c) {
        const int to = c / 4 * 4 + c % 2 * 2;
        out[s + c % 4 / 2][to] = w[s][c];
        out[s + c % 4 / 2][to + 1] = w[s + 1][c];
      }
    Codes::put(out, p);
  }
};

}  // namespace
}  // namespace flywheel::inline v0::kernels
