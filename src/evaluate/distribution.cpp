#include "src/evaluate/distribution.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flywheel/detail/portable_math.hpp"

namespace flywheel::inline v0::evaluate {
namespace {

constexpr float lowest = 80;        ///< exp(-80) is 1.8e-35.
constexpr double least = -708;      ///< Where portable_exp becomes 0.
constexpr std::size_t block = 256;  ///< Numbers at a time: loops over them vectorise and stay in L1.
constexpr std::size_t lanes = 4;    ///< Independent sums.
constexpr double last_code = 65535;

/// The place of the largest logit; nothing when they are not logits.
std::optional<token_id> top_of(std::span<const float> logits) noexcept {
  float most = -std::numeric_limits<float>::infinity();
  std::size_t top = logits.size();
  bool numbers = true;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    numbers &= logits[i] == logits[i];
    if (logits[i] > most) {
      most = logits[i];
      top = i;
    }
  }
  if (!numbers || top == logits.size() || most == std::numeric_limits<float>::infinity()) return std::nullopt;
  return static_cast<token_id>(top);
}

/// Independent partial sums, in an order that does not depend on the machine.
struct sums {
  double a[lanes] = {}, b[lanes] = {}, c[lanes] = {};
  static double of(const double (&part)[lanes]) { return (part[0] + part[1]) + (part[2] + part[3]); }
};

double log_p_of(std::span<const float> logits, token_id top, double log_sum, token_id next) {
  return static_cast<double>(logits[static_cast<std::size_t>(next)]) -
         static_cast<double>(logits[static_cast<std::size_t>(top)]) - log_sum;
}

}  // namespace

std::optional<stored_row> store(std::span<const float> logits, token_id next, std::span<std::uint16_t> codes) noexcept {
  const std::optional<token_id> top = top_of(logits);
  if (!top) return std::nullopt;
  const float most = logits[static_cast<std::size_t>(*top)];
  float least_logit = most;
  for (const float l : logits) least_logit = std::min(least_logit, std::max(l, most - lowest));
  stored_row row;
  row.top = *top;
  row.range = std::max(most - least_logit, std::numeric_limits<float>::min());
  const float scale = 1 / row.range;
  sums s;
  double e[block];
  for (std::size_t begin = 0; begin < logits.size(); begin += block) {
    const std::size_t n = std::min(block, logits.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const float below = most - logits[begin + i];
      codes[begin + i] =
          static_cast<std::uint16_t>(static_cast<float>(last_code) * std::sqrt(std::min(1.0F, below * scale)) + 0.5F);
    }
    for (std::size_t i = 0; i < n; ++i)
      e[i] = detail::portable_exp(std::max(static_cast<double>(logits[begin + i]) - static_cast<double>(most), least));
    for (std::size_t i = 0; i < n; ++i) s.a[i % lanes] += e[i];
  }
  row.log_p = log_p_of(logits, *top, std::log(sums::of(s.a)), next);
  row.p = std::exp(row.log_p);
  return row;
}

std::optional<row_comparison> compare(const stored_row& row, std::span<const std::uint16_t> codes,
                                      std::span<const float> logits, token_id next) noexcept {
  const std::optional<token_id> top = top_of(logits);
  if (!top) return std::nullopt;
  const double most = static_cast<double>(logits[static_cast<std::size_t>(*top)]);
  const double step = -static_cast<double>(row.range) / (last_code * last_code);
  sums s;
  double p[block], q[block], difference[block];
  for (std::size_t begin = 0; begin < logits.size(); begin += block) {
    const std::size_t n = std::min(block, logits.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const auto code = static_cast<double>(codes[begin + i]);
      const double stored = step * (code * code);
      const double other = std::max(static_cast<double>(logits[begin + i]) - most, least);
      q[i] = detail::portable_exp(stored);
      p[i] = detail::portable_exp(other);
      difference[i] = stored - other;
    }
    for (std::size_t i = 0; i < n; ++i) {
      s.a[i % lanes] += q[i];
      s.b[i % lanes] += p[i];
      s.c[i % lanes] += q[i] * difference[i];
    }
  }
  // sum q (log q - log p), with log q = stored - log(sum a) and log p = other - log(sum b)
  const double log_p_sum = std::log(sums::of(s.b));
  row_comparison out;
  out.kl = std::max(0.0, sums::of(s.c) / sums::of(s.a) - std::log(sums::of(s.a)) + log_p_sum);
  out.top = *top;
  out.log_p = log_p_of(logits, *top, log_p_sum, next);
  out.p = std::exp(out.log_p);
  return out;
}

}  // namespace flywheel::inline v0::evaluate
