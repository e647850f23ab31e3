#include "src/quant/codebook_search.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "flywheel/formats/codebooks.hpp"
#include "flywheel/formats/encoding/tile.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::size_t index(int i) noexcept { return static_cast<std::size_t>(i); }

}  // namespace

block_encoder::block_encoder(const codebook& book, const kernels::kernel_set& kernels, float* scratch) noexcept
    : book_(book),
      kernels_(kernels),
      linear_(scratch),
      square_(scratch + (book.ternary != nullptr ? 0 : book.groups() * book.points)),
      flipped_(book.flips() ? square_ + book.groups() * book.points : nullptr) {}

int block_encoder::code_below(float scale, float d, float more) const noexcept {
  const float code = (scale / (d * book_.unit) - 1) * 0.5F + more;
  return static_cast<int>(std::clamp(code, 0.0F, static_cast<float>(book_.highest)));
}

float block_encoder::stored(float d, std::uint16_t& bits) const noexcept {
  bits = std::max<std::uint16_t>(1, formats::f32_to_f16(std::min(d * peak_, 65504.0F)));
  return formats::f16_to_f32(bits) / peak_;
}

void block_encoder::prepare(const float* x, const float* importance, float importance_factor) noexcept {
  peak_ = 0;
  for (int i = 0; i < 256; ++i) peak_ = std::max(peak_, std::fabs(x[i]));
  if (peak_ == 0) return;
  negative_ = {};
  for (std::size_t i = 0; i < 256; ++i) {
    w_[i] = importance != nullptr ? importance[i] * importance_factor + formats::encoding::weighting::floor : 1;
    const bool negative = book_.ternary == nullptr && x[i] < 0;
    if (negative) negative_[i / 8] = static_cast<std::uint8_t>(negative_[i / 8] | (1U << (i % 8)));
    v_[i] = -2 * w_[i] * ((negative ? -x[i] : x[i]) / peak_);
  }
  if (book_.ternary != nullptr) return;
  for (int g = 0; g < book_.groups(); ++g) {
    const unsigned bits = book_.dims == 8 ? negative_[index(g)] : (negative_[index(g / 2)] >> (4 * (g % 2))) & 15U;
    odd_[index(g)] = std::popcount(bits) % 2 != 0;
  }
  kernels_.codebook_terms(book_.levels, book_.points, book_.dims, v_.data(), w_.data(), book_.groups(), linear_,
                          square_, flipped_);
}

void block_encoder::errors_at(int j, int count, float* errors) noexcept {
  using row = std::array<float, most_scales>;
  const int groups = book_.groups_per_sub_block(), first = j * groups;
  const auto size = index(count);
  const auto least = [&](int g, int variant, row& out) {
    kernels_.codebook_least(linear(g, variant), square(g), book_.points, scales_.data(), count, out.data());
  };
  std::fill_n(errors, count, 0.0F);
  if (book_.ternary != nullptr) {
    row other{};
    for (int g = 0; g < groups; ++g) {
      std::array<float, 16>& here = ternary_least_[index(g)];
      const int at = (first + g) * 8;
      kernels_.ternary_least(book_.ternary->book, v_.data() + at, w_.data() + at, scales_.data(), count,
                             linear_ + g * 81 * 16, here.data());
      for (std::size_t k = 0; k < size; ++k)
        if (book_.rule == freedom::shift_group)
          errors[k] += std::min(here[k], here[8 + k]);
        else
          errors[k] += here[k], other[k] += here[8 + k];
    }
    if (book_.rule == freedom::shift_sub_block)
      for (std::size_t k = 0; k < size; ++k) errors[k] = std::min(errors[k], other[k]);
    return;
  }
  row a{}, b{}, flipped_a{}, flipped_b{};
  const int step = book_.rule == freedom::even_pair ? 2 : 1;
  for (int g = first; g < first + groups; g += step) {
    least(g, book_.rule == freedom::even_group && odd_[index(g)], a);
    if (book_.rule == freedom::even_pair) {
      least(g + 1, 0, b);
      if (odd_[index(g)] == odd_[index(g + 1)]) {
        for (std::size_t k = 0; k < size; ++k) a[k] += b[k];
      } else {
        least(g, 1, flipped_a);
        least(g + 1, 1, flipped_b);
        for (std::size_t k = 0; k < size; ++k) a[k] = std::min(flipped_a[k] + b[k], a[k] + flipped_b[k]);
      }
    }
    for (std::size_t k = 0; k < size; ++k) errors[k] += a[k];
  }
  for (std::size_t k = 0; k < size; ++k) errors[k] *= scales_[k];
}

block_encoder::candidate block_encoder::nearest(int group, int variant, float scale) const noexcept {
  const std::int64_t point = kernels_.codebook_nearest(linear(group, variant), square(group), book_.points, scale);
  return {point, {linear(group, variant)[point], square(group)[point]}};
}

block_encoder::candidate block_encoder::nearest_ternary(int group, int variant, int k) const noexcept {
  const float* runs = linear_ + group % book_.groups_per_sub_block() * 81 * 16 + 8 * variant + k;
  int half = 0;
  for (int h = 1; h < 81; ++h)
    if (runs[16 * h] < runs[16 * half]) half = h;
  const float* v = v_.data() + group * 8;
  const float* w = w_.data() + group * 8;
  const auto level = [&](int point, int i) {
    return static_cast<float>(8 * formats::iq1_levels[(formats::iq1_points[point] >> (2 * i)) & 3] + 1 - 2 * variant);
  };
  std::array<std::array<float, 3>, 4> cost{};
  for (int i = 0; i < 4; ++i)
    for (int l = 0; l < 3; ++l) {
      const float m = scales_[index(k)] * static_cast<float>(8 * l - 7 - 2 * variant);
      cost[index(i)][index(l)] = m * (v[i] + w[i] * m);
    }
  candidate found;
  float least = std::numeric_limits<float>::infinity();
  for (int p = book_.ternary->number[half]; p < book_.ternary->number[half + 1]; ++p) {
    float here = 0;
    for (int i = 0; i < 4; ++i) here += cost[index(i)][(formats::iq1_points[p] >> (2 * i)) & 3];
    if (here < least) {
      least = here;
      found.point = p;
    }
  }
  for (int i = 0; i < 8; ++i) {
    const float m = level(static_cast<int>(found.point), i);
    found.error.linear += v[i] * m;
    found.error.square += w[i] * m * m;
  }
  return found;
}

parabola block_encoder::choose(int j, int k, block_choice& into) const noexcept {
  const int groups = book_.groups_per_sub_block(), first = j * groups;
  const float scale = scales_[index(k)];
  parabola total;
  const auto take = [&](int g, int variant, const candidate& c) {
    into.point[index(g)] = static_cast<std::uint16_t>(c.point);
    into.variant[index(g)] = static_cast<std::uint8_t>(variant);
    total.linear += c.error.linear;
    total.square += c.error.square;
  };
  const auto ternary_error = [&](int g, int variant) { return ternary_least_[index(g)][index(8 * variant + k)]; };
  switch (book_.rule) {
    case freedom::none:
    case freedom::even_group:
      for (int g = first; g < first + groups; ++g) {
        const int variant = book_.rule == freedom::even_group && odd_[index(g)] ? 1 : 0;
        take(g, variant, nearest(g, variant, scale));
      }
      break;
    case freedom::even_pair:
      for (int g = first; g < first + groups; g += 2) {
        const candidate a = nearest(g, 0, scale), b = nearest(g + 1, 0, scale);
        if (odd_[index(g)] == odd_[index(g + 1)]) {
          take(g, 0, a), take(g + 1, 0, b);
          continue;
        }
        const candidate flipped_a = nearest(g, 1, scale), flipped_b = nearest(g + 1, 1, scale);
        if (flipped_a.error.at(scale) + b.error.at(scale) <= a.error.at(scale) + flipped_b.error.at(scale))
          take(g, 1, flipped_a), take(g + 1, 0, b);
        else
          take(g, 0, a), take(g + 1, 1, flipped_b);
      }
      break;
    case freedom::shift_sub_block: {
      std::array<float, 2> sum{};
      for (int g = 0; g < groups; ++g)
        for (int variant = 0; variant < 2; ++variant) sum[index(variant)] += ternary_error(g, variant);
      const int variant = sum[0] <= sum[1] ? 0 : 1;
      for (int g = first; g < first + groups; ++g) take(g, variant, nearest_ternary(g, variant, k));
      break;
    }
    case freedom::shift_group:
      for (int g = first; g < first + groups; ++g) {
        const int variant = ternary_error(g - first, 0) <= ternary_error(g - first, 1) ? 0 : 1;
        take(g, variant, nearest_ternary(g, variant, k));
      }
      break;
  }
  return total;
}

parabola block_encoder::best_of_sub_block(int j, rounding method) noexcept {
  const int size = 256 / book_.sub_blocks;
  float weight = 0, power = 0, highest = 0;
  for (int i = j * size; i < (j + 1) * size; ++i) {
    const float value = std::fabs(v_[index(i)]) / (2 * w_[index(i)]);
    weight += w_[index(i)];
    power += w_[index(i)] * value * value;
    highest = std::max(highest, value);
  }
  if (highest == 0) return {};
  std::array<float, most_scales> errors{};
  block_choice points;
  const float to_peak = highest / book_.top;
  if (method == rounding::nearest) {
    scales_[0] = to_peak;
    errors_at(j, 1, errors.data());
    const parabola curve = choose(j, 0, points);
    return {-2 * to_peak * curve.square, curve.square};  // best at this scale and no other
  }
  // From half of what gives levels their typical size to what the largest value asks for; and, for values that are
  // nearly alike, what puts them on the lowest level.
  const float size_of_values = std::sqrt(power / weight), typical = size_of_values / book_.typical;
  const float from = 0.5F * typical, to = std::max(1.7F * typical, 1.05F * to_peak);
  const int count = method == rounding::greedy && book_.ternary == nullptr ? most_scales : 8;
  const int in_range = book_.ternary == nullptr ? count - 1 : count;
  const float step = std::pow(to / from, 1.0F / static_cast<float>(in_range - 1));
  scales_[0] = from;
  for (int k = 1; k < in_range; ++k) scales_[index(k)] = scales_[index(k - 1)] * step;
  if (in_range < count) scales_[index(in_range)] = size_of_values / static_cast<float>(book_.levels[0]);
  errors_at(j, count, errors.data());
  const auto best = std::min_element(errors.begin(), errors.begin() + count) - errors.begin();
  parabola curve = choose(j, static_cast<int>(best), points);
  // Ternary points gain little here, and cost most.
  for (int round = method == rounding::greedy ? 4 : book_.ternary != nullptr ? 0 : 1; round > 0; --round) {
    scales_[0] = curve.best();
    errors_at(j, 1, errors.data());
    const parabola next = choose(j, 0, points);
    if (!(next.at(next.best()) < curve.at(curve.best()))) break;
    curve = next;
  }
  return curve;
}

std::array<float, 3> block_encoder::starts() const noexcept {
  float highest = 0;
  for (const parabola& curve : free_) highest = std::max(highest, curve.best());
  std::array<float, 3> found{}, errors;
  errors.fill(std::numeric_limits<float>::infinity());
  constexpr float step = 1.015F;
  float d = 0.9F * highest / book_.multiple(book_.highest);
  for (int i = 0; i < 64; ++i, d *= step) {  // up to where the largest code is a bit over a third of the highest
    float error = 0;
    for (int j = 0; j < book_.sub_blocks; ++j) {
      const parabola& curve = free_[index(j)];
      const float miss = d * book_.multiple(code_below(curve.best(), d, 0.5F)) - curve.best();
      error += curve.square * miss * miss;
    }
    std::size_t place = found.size();
    while (place > 0 && error < errors[place - 1]) --place;
    if (place == found.size()) continue;
    for (std::size_t m = found.size() - 1; m > place; --m) found[m] = found[m - 1], errors[m] = errors[m - 1];
    found[place] = d;
    errors[place] = error;
  }
  return found;
}

void block_encoder::improve(float d, rounding method) noexcept {
  block_choice now;
  float least = std::numeric_limits<float>::infinity();
  d = stored(d, now.d);
  // All codes of ternary points are tried at once: a second round gains little.
  const int rounds = method == rounding::greedy   ? 8
                     : method == rounding::search ? (book_.ternary != nullptr ? 1 : 2)
                                                  : 1;
  const int codes = method == rounding::nearest ? 1 : book_.ternary != nullptr ? 8 : 4;
  for (int round = 0; round < rounds; ++round) {
    parabola whole;
    for (int j = 0; j < book_.sub_blocks; ++j) {
      const float own = free_[index(j)].best();
      int first = method == rounding::nearest ? code_below(own, d, 0.5F) : code_below(own, d, 0) - 1;
      first = std::clamp(first, 0, book_.highest + 1 - codes);
      for (int k = 0; k < codes; ++k) scales_[index(k)] = d * book_.multiple(first + k);
      std::array<float, 8> errors{};
      errors_at(j, codes, errors.data());
      const int k = static_cast<int>(std::min_element(errors.begin(), errors.begin() + codes) - errors.begin());
      now.code[index(j)] = static_cast<std::uint8_t>(first + k);
      const parabola part = choose(j, k, now);
      const float multiple = book_.multiple(first + k);
      whole.linear += multiple * part.linear;
      whole.square += multiple * multiple * part.square;
    }
    if (method != rounding::nearest) d = stored(whole.best(), now.d);
    const float error = whole.at(d);
    if (!(error < least)) break;
    least = error;
    if (error < error_) {
      error_ = error;
      best_ = now;
    }
  }
}

bool block_encoder::encode(const float* x, const float* importance, float importance_factor, rounding method) noexcept {
  best_ = {};
  error_ = 0;  // of zeros
  prepare(x, importance, importance_factor);
  if (peak_ == 0) return false;
  free_ = {};
  float highest = 0;
  for (int j = 0; j < book_.sub_blocks; ++j) {
    free_[index(j)] = best_of_sub_block(j, method);
    highest = std::max(highest, free_[index(j)].best());
  }
  if (method == rounding::nearest) {
    improve(highest / book_.multiple(book_.highest), method);
  } else {
    const std::array<float, 3> d = starts();
    for (std::size_t i = 0; i < (method == rounding::greedy ? d.size() : 1); ++i) improve(d[i], method);
  }
  return best_.d != 0;
}

std::uint32_t block_encoder::signs(int eight) const noexcept {
  std::uint32_t bits = negative_[index(eight)];
  if (!book_.flips()) return bits;
  const int dims = book_.dims;
  for (int g = eight * 8 / dims; g < (eight + 1) * 8 / dims; ++g) {
    if (best_.variant[index(g)] == 0) continue;
    int cheapest = 0;
    float cost = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < dims; ++i) {
      const float here = v_[index(g * dims + i)] * book_.levels[i * book_.points + best_.point[index(g)]];
      if (here > cost) cost = here, cheapest = i;
    }
    bits ^= 1U << (g * dims % 8 + cheapest);
  }
  return bits;
}

}  // namespace flywheel::inline v0::quant
