// The search behind the encoders of IQ1, IQ2 and IQ3.
//
// A block has 256 values: a scale d, a code per sub-block that multiplies it, a point of a codebook per group. The best
// scale of each sub-block is found first (errors over a range of scales, then least squares for the points of the
// best), d from these scales, and then d, codes and points are improved in turns: codes around the sub-block's own
// scale with their best points, d by least squares. Signs are no search: the values' own, and where their number must
// be even, the one whose change costs least with the point in question (kernels/codebook/codebook.hpp).
#pragma once

#include <array>
#include <cstdint>

#include "flywheel/quant/recipe.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::quant {

/// Beside its point a group may have one of two variants: a sign other than its value's, or the other shift.
enum class freedom : std::uint8_t {
  none,             ///< Signs are free.
  even_group,       ///< An even number of signs in each group.
  even_pair,        ///< In each two groups.
  shift_sub_block,  ///< A shift per sub-block,
  shift_group,      ///< or per group.
};

/// Three levels per value: IQ1's points for the kernels, and the number of the first point with each second half.
struct ternary_points {
  kernels::ternary_book book;
  const std::uint16_t* number;  ///< [82]
};

struct codebook {
  dtype type;
  freedom rule;
  int dims;        ///< Values of a group.
  int sub_blocks;  ///< Of 256 / sub_blocks values, with a scale code each.
  int highest;     ///< Code.
  float unit;      ///< A level is worth d * (2 * code + 1) * unit.
  float typical;   ///< Root mean square of the levels.
  float top;       ///< The highest level.
  std::int64_t points;
  const std::int8_t* levels;      ///< [dims][points]
  const ternary_points* ternary;  ///< For shifted levels; null for others.

  [[nodiscard]] constexpr bool flips() const noexcept {
    return rule == freedom::even_group || rule == freedom::even_pair;
  }
  [[nodiscard]] constexpr int groups() const noexcept { return 256 / dims; }
  [[nodiscard]] constexpr int groups_per_sub_block() const noexcept { return 256 / dims / sub_blocks; }
  [[nodiscard]] constexpr float multiple(int code) const noexcept { return static_cast<float>(2 * code + 1) * unit; }
  /// Floats that a block_encoder needs to work with.
  [[nodiscard]] constexpr std::int64_t scratch() const noexcept {
    return ternary != nullptr ? 4 * 81 * 16 : groups() * points * (flips() ? 3 : 2);
  }
};

/// What a block is stored as, but for signs.
struct block_choice {
  std::uint16_t d = 0;  ///< f16
  std::array<std::uint8_t, 16> code{};
  std::array<std::uint16_t, 64> point{};
  std::array<std::uint8_t, 64> variant{};
};

/// Weighted error over the scale, less that of zeros: scale * linear + scale^2 * square.
struct parabola {
  float linear = 0, square = 0;
  [[nodiscard]] float best() const noexcept { return square > 0 && linear < 0 ? -linear / (2 * square) : 0; }
  [[nodiscard]] float at(float scale) const noexcept { return scale * (linear + scale * square); }
};

class block_encoder {
 public:
  /// scratch: [book.scratch()], 64-byte aligned or not.
  block_encoder(const codebook& book, const kernels::kernel_set& kernels, float* scratch) noexcept;

  /// x [256]; importance [256] or null, times importance_factor is about 1. False if zeros are the best there is.
  bool encode(const float* x, const float* importance, float importance_factor, rounding method) noexcept;
  [[nodiscard]] const block_choice& result() const noexcept { return best_; }
  /// Of eight values: bit i is set where value i is to be negative.
  [[nodiscard]] std::uint32_t signs(int eight) const noexcept;

 private:
  static constexpr int most_scales = 16;
  struct candidate {
    std::int64_t point = 0;
    parabola error;
  };

  void prepare(const float* x, const float* importance, float importance_factor) noexcept;
  /// The least errors of sub-block j at the first `count` of scales_.
  void errors_at(int j, int count, float* errors) noexcept;
  /// Points and variants of sub-block j for scales_[k]; errors_at() was called for it.
  parabola choose(int j, int k, block_choice& into) const noexcept;
  [[nodiscard]] candidate nearest(int group, int variant, float scale) const noexcept;
  [[nodiscard]] candidate nearest_ternary(int group, int variant, int k) const noexcept;
  parabola best_of_sub_block(int j, rounding method) noexcept;
  /// Scales of the block that suit the sub-blocks' own best, the best first.
  [[nodiscard]] std::array<float, 3> starts() const noexcept;
  /// From a scale of the block: codes and points, then the scale by least squares, while it gets better.
  void improve(float d, rounding method) noexcept;

  /// The code whose scale is next below `scale` (nearest, with 0.5 more).
  [[nodiscard]] int code_below(float scale, float d, float more) const noexcept;
  /// d as it can be stored: the f16 bits, and its value here.
  [[nodiscard]] float stored(float d, std::uint16_t& bits) const noexcept;
  [[nodiscard]] const float* linear(int group, int variant) const noexcept {
    return (variant != 0 ? flipped_ : linear_) + group * book_.points;
  }
  [[nodiscard]] const float* square(int group) const noexcept { return square_ + group * book_.points; }

  const codebook& book_;
  const kernels::kernel_set& kernels_;
  float* linear_;   ///< [groups][points], or for ternary points the kernel's runs, [groups of a sub-block][81][16]
  float* square_;   ///< [groups][points]
  float* flipped_;  ///< [groups][points]: linear, with a sign changed
  float peak_ = 0;  ///< Values are x / peak_ here.
  alignas(64) std::array<float, 256> v_{}, w_{};  ///< -2 w x, or of |x| where signs are stored beside; w
  std::array<bool, 64> odd_{};                    ///< Whether an odd number of values is negative, per group.
  std::array<std::uint8_t, 32> negative_{};       ///< A bit per value.
  std::array<float, most_scales> scales_{};
  std::array<std::array<float, 16>, 4> ternary_least_{};  ///< The kernel's, per group of the sub-block.
  std::array<parabola, 16> free_{};                       ///< Of sub-blocks with scales of their own.
  block_choice best_;
  float error_ = 0;  ///< Of best_.
};

}  // namespace flywheel::inline v0::quant
