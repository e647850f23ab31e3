// Random weights of every tensor format that kernels compute with: what measurements run on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0::measure {

/// splitmix64 (Steele et al. 2014): the same numbers on every machine.
class random_bits {
 public:
  explicit random_bits(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  /// Uniform with mean 0 and standard deviation 1.
  float number() { return (static_cast<float>(next() >> 40) * 0x1p-24F - 0.5F) * 3.4641016F; }

 private:
  std::uint64_t state_;
};

[[nodiscard]] FLYWHEEL_API bool can_make_rows(dtype type) noexcept;
/// Whole rows of `cols` elements (a multiple of the format's block) whose values have mean 0 and the given standard
/// deviation. All zero for a type that cannot be made. Throws std::bad_alloc.
FLYWHEEL_API void fill_random_rows(random_bits& random, dtype type, std::int64_t cols, float deviation,
                                   std::span<std::byte> out);

}  // namespace flywheel::inline v0::measure
