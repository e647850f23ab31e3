// What a simulated NPU was asked to do besides computing: options, and the failures they inject.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string_view>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::device::simulation {

/// In the order of their bits and names.
enum class fault : std::uint8_t { stale_fingerprint, truncated_blob, out_of_memory, timeout, failed, device_lost };
inline constexpr std::size_t n_faults = 6;

struct npu_options {
  std::uint64_t seed = 1;
  std::uint64_t delay_us = 0;
  std::uint32_t faults = 0;  ///< Bits.
  double fault_rate = 0.01;
  std::uint64_t scratch = 0;  ///< 0: the profile's.
};

/// As in simulated_npu::create. Error: invalid_argument, at the key.
[[nodiscard]] result<npu_options> parse_npu_options(std::string_view text);

/// Each kind of fault has its own sequence of decisions, one per opportunity, so that the n-th allocation fails or not
/// whatever else happens. Not thread-safe.
class fault_source {
 public:
  explicit fault_source(const npu_options& options);
  /// An opportunity: whether it happens this time.
  [[nodiscard]] bool strikes(fault kind) noexcept;
  /// How many have.
  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }

 private:
  std::array<std::mt19937_64, n_faults> decisions_;
  std::uint32_t enabled_ = 0;
  double rate_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace flywheel::inline v0::device::simulation
