#include "src/core/checksum.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace flywheel::inline v0::detail {
namespace {

// Bytes are little-endian whatever the machine is.
template <class T>
std::uint64_t load(const std::byte* bytes) noexcept {
  std::uint64_t x = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) x |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return x;
}

}  // namespace

void checksum::stripe(const std::byte* bytes) noexcept {
  for (std::size_t i = 0; i < 4; ++i)
    lanes_[i] = std::rotl(lanes_[i] + load<std::uint64_t>(bytes + 8 * i) * prime_2, 31) * prime_1;
}

void checksum::add(std::span<const std::byte> bytes) noexcept {
  total_ += bytes.size();
  if (pending_bytes_ > 0) {
    const std::size_t n = std::min(bytes.size(), pending_.size() - pending_bytes_);
    std::copy_n(bytes.begin(), n, pending_.begin() + static_cast<std::ptrdiff_t>(pending_bytes_));
    pending_bytes_ += n;
    bytes = bytes.subspan(n);
    if (pending_bytes_ < pending_.size()) return;
    stripe(pending_.data());
    pending_bytes_ = 0;
  }
  for (; bytes.size() >= pending_.size(); bytes = bytes.subspan(pending_.size())) stripe(bytes.data());
  std::copy(bytes.begin(), bytes.end(), pending_.begin());
  pending_bytes_ = bytes.size();
}

std::uint64_t checksum::value() const noexcept {
  std::uint64_t hash = prime_5;
  if (total_ >= pending_.size()) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const std::uint64_t lane : lanes_)
      hash = (hash ^ (std::rotl(lane * prime_2, 31) * prime_1)) * prime_1 + prime_4;
  }
  hash += total_;
  std::size_t i = 0;
  for (; i + 8 <= pending_bytes_; i += 8) {
    const std::uint64_t lane = std::rotl(load<std::uint64_t>(&pending_[i]) * prime_2, 31) * prime_1;
    hash = std::rotl(hash ^ lane, 27) * prime_1 + prime_4;
  }
  for (; i + 4 <= pending_bytes_; i += 4)
    hash = std::rotl(hash ^ (load<std::uint32_t>(&pending_[i]) * prime_1), 23) * prime_2 + prime_3;
  for (; i < pending_bytes_; ++i) hash = std::rotl(hash ^ (load<std::uint8_t>(&pending_[i]) * prime_5), 11) * prime_1;
  hash = (hash ^ (hash >> 33)) * prime_2;
  hash = (hash ^ (hash >> 29)) * prime_3;
  return hash ^ (hash >> 32);
}

}  // namespace flywheel::inline v0::detail
