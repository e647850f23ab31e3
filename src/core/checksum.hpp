// XXH64 (Collet; the algorithm's public specification), for the integrity of files: quick, not cryptographic.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0::detail {

/// Bytes in pieces of any size give the same number as in one. Seed 0.
class checksum {
 public:
  void add(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] std::uint64_t value() const noexcept;

 private:
  static constexpr std::uint64_t prime_1 = 0x9E3779B185EBCA87ULL;
  static constexpr std::uint64_t prime_2 = 0xC2B2AE3D27D4EB4FULL;
  static constexpr std::uint64_t prime_3 = 0x165667B19E3779F9ULL;
  static constexpr std::uint64_t prime_4 = 0x85EBCA77C2B2AE63ULL;
  static constexpr std::uint64_t prime_5 = 0x27D4EB2F165667C5ULL;

  void stripe(const std::byte* bytes) noexcept;

  std::array<std::uint64_t, 4> lanes_{prime_1 + prime_2, prime_2, 0, 0 - prime_1};
  std::array<std::byte, 32> pending_{};
  std::size_t pending_bytes_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace flywheel::inline v0::detail
