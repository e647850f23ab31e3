#include "src/quant/hadamard.hpp"

#include <algorithm>
#include <cmath>

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t largest_order = 512;  ///< Of Paley's matrices that are looked for.

bool prime(std::int64_t n) {
  for (std::int64_t d = 2; d * d <= n; ++d)
    if (n % d == 0) return false;
  return n > 1;
}

/// Jacobsthal's matrix of a prime q: [a, b] = Legendre symbol of a - b.
std::vector<std::int8_t> jacobsthal(std::int64_t q) {
  std::vector<std::int8_t> symbol(static_cast<std::size_t>(q), -1), out(static_cast<std::size_t>(q * q));
  symbol[0] = 0;
  for (std::int64_t i = 1; i < q; ++i) symbol[static_cast<std::size_t>(i * i % q)] = 1;
  for (std::int64_t a = 0; a < q; ++a)
    for (std::int64_t b = 0; b < q; ++b)
      out[static_cast<std::size_t>(a * q + b)] = symbol[static_cast<std::size_t>((a - b + q) % q)];
  return out;
}

/// A Hadamard matrix by Paley's constructions (1933), [n, n]; empty where neither gives one.
std::vector<std::int8_t> paley(std::int64_t n) {
  const auto at = [n](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * n + b); };
  std::vector<std::int8_t> h(static_cast<std::size_t>(n * n), 1);
  if (const std::int64_t q = n - 1; n % 4 == 0 && prime(q)) {  // I + S, S = [[0, 1], [-1, Q]]
    const std::vector<std::int8_t> core = jacobsthal(q);
    for (std::int64_t a = 0; a < q; ++a) {
      h[at(a + 1, 0)] = -1;
      for (std::int64_t b = 0; b < q; ++b)
        h[at(a + 1, b + 1)] = a == b ? std::int8_t{1} : core[static_cast<std::size_t>(a * q + b)];
    }
    return h;
  }
  if (const std::int64_t q = n / 2 - 1; n % 4 == 0 && q % 4 == 1 && prime(q)) {
    // C = [[0, 1], [1, Q]], each 0 as [[1, -1], [-1, -1]], each +-1 as +-[[1, 1], [1, -1]].
    const std::vector<std::int8_t> core = jacobsthal(q);
    for (std::int64_t a = 0; a <= q; ++a)
      for (std::int64_t b = 0; b <= q; ++b) {
        const std::int8_t c = a == b             ? std::int8_t{0}
                              : a == 0 || b == 0 ? std::int8_t{1}
                                                 : core[static_cast<std::size_t>((a - 1) * q + b - 1)];
        h[at(2 * a, 2 * b)] = c == 0 ? std::int8_t{1} : c;
        h[at(2 * a, 2 * b + 1)] = h[at(2 * a + 1, 2 * b)] = c == 0 ? std::int8_t{-1} : c;
        h[at(2 * a + 1, 2 * b + 1)] = c == 0 ? std::int8_t{-1} : static_cast<std::int8_t>(-c);
      }
    return h;
  }
  return {};
}

}  // namespace

std::optional<hadamard_rotation> hadamard_rotation::create(std::int64_t n, std::uint64_t seed) {
  if (n < 1) return std::nullopt;
  hadamard_rotation made;
  made.order_ = n;
  while (made.order_ % 2 == 0) made.order_ /= 2;
  made.base_ = {1};
  if (made.order_ > 1) {
    made.base_.clear();
    for (made.order_ *= 4; made.base_.empty() && made.order_ <= largest_order && n % made.order_ == 0;) {
      made.base_ = paley(made.order_);
      if (made.base_.empty()) made.order_ *= 2;
    }
    if (made.base_.empty()) return std::nullopt;
  }
  const float scale = 1 / std::sqrt(static_cast<float>(n));
  for (std::int64_t i = 0; i < n; ++i) {  // splitmix64, Steele et al. 2014
    std::uint64_t z = seed += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    made.signs_.push_back((z >> 63) != 0 ? -scale : scale);
  }
  return made;
}

void hadamard_rotation::apply(float* x, std::int64_t width, std::vector<float>& scratch) const {
  const std::int64_t n = size(), inner = n / order_;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t w = 0; w < width; ++w) x[i * width + w] *= signs_[static_cast<std::size_t>(i)];
  for (std::int64_t half = 1; half < inner; half *= 2)
    for (std::int64_t start = 0; start < n; start += 2 * half)
      for (std::int64_t i = start * width; i < (start + half) * width; ++i) {
        const float a = x[i], b = x[i + half * width];
        x[i] = a + b;
        x[i + half * width] = a - b;
      }
  if (order_ == 1) return;
  const std::int64_t run = inner * width;
  scratch.resize(static_cast<std::size_t>(n * width));
  std::fill(scratch.begin(), scratch.end(), 0.0F);
  for (std::int64_t a = 0; a < order_; ++a)
    for (std::int64_t b = 0; b < order_; ++b) {
      const float sign = base_[static_cast<std::size_t>(a * order_ + b)];
      for (std::int64_t i = 0; i < run; ++i) scratch[static_cast<std::size_t>(b * run + i)] += sign * x[a * run + i];
    }
  std::copy(scratch.begin(), scratch.end(), x);
}

}  // namespace flywheel::inline v0::quant
