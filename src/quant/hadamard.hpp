// Rotations by random signs and a Hadamard matrix.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace flywheel::inline v0::quant {

/// x -> (x o signs) H / sqrt(n), an orthogonal map of n numbers. H = B (x) S, S of Sylvester's, of the largest power of
/// two for which B, Paley's, exists.
class hadamard_rotation {
 public:
  /// None for an n without such a matrix.
  [[nodiscard]] static std::optional<hadamard_rotation> create(std::int64_t n, std::uint64_t seed);
  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(signs_.size()); }
  /// In place; the n "numbers" are rows of `width` floats, `width` apart. `scratch` is resized.
  void apply(float* x, std::int64_t width, std::vector<float>& scratch) const;

 private:
  std::vector<float> signs_;       ///< With 1 / sqrt(n).
  std::vector<std::int8_t> base_;  ///< B [order, order]
  std::int64_t order_ = 1;
};

}  // namespace flywheel::inline v0::quant
