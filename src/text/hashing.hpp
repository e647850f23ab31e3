// Hashing of short byte strings and id pairs for the flat tables of this room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace flywheel::inline v0::text {

/// Multiplies and folds: every output bit depends on every input bit.
[[nodiscard]] inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) noexcept {
#if defined(__SIZEOF_INT128__)
  __extension__ using wide = unsigned __int128;
  const wide product = static_cast<wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
#else
  std::uint64_t h = (a ^ (b >> 32)) * 0x9E3779B97F4A7C15ULL;
  h ^= h >> 29;
  h = (h ^ b) * 0xBF58476D1CE4E5B9ULL;
  return h ^ (h >> 32);
#endif
}

/// `seed` differs from table to table, so that a vocabulary cannot be made to collide in advance.
[[nodiscard]] inline std::uint64_t hash_bytes(std::string_view bytes, std::uint64_t seed) noexcept {
  constexpr std::uint64_t k0 = 0xA0761D6478BD642FULL, k1 = 0xE7037ED1A0B428DBULL;
  std::uint64_t h = seed ^ bytes.size() * k0;
  const char* p = bytes.data();
  std::size_t n = bytes.size();
  for (; n > 8; p += 8, n -= 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    h = fold_multiply(h ^ word, k1);
  }
  std::uint64_t last = 0;
  if (n != 0) std::memcpy(&last, p, n);
  return fold_multiply(h ^ last, k1 ^ seed);
}

/// Asks for the memory at `where` before it is needed: tables of large vocabularies do not fit the caches.
inline void prefetch(const void* where) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(where);
#else
  (void)where;
#endif
}

/// A seed from where things lie in this process.
[[nodiscard]] inline std::uint64_t hash_seed(const void* where) noexcept {
  return fold_multiply(reinterpret_cast<std::uintptr_t>(where), 0x8EBC6AF09C88C6E3ULL) | 1;
}

}  // namespace flywheel::inline v0::text
