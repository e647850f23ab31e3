// Groups side by side: value i of every lane's group in one vector.
#pragma once

#include <cstdint>

#include "flywheel/formats/encoding/lanes.hpp"

namespace flywheel::inline v0::formats::encoding {

/// What the errors of a row's columns count: importance [n] * factor + floor, or 1 where importance is null. The factor
/// makes the mean 1, so that nothing leaves the range of f32, and the floor keeps columns that were never active from
/// being rounded to anything.
struct weighting {
  const float* importance;
  float factor;
  static constexpr float floor = 1e-5F;
};

/// For importance [n]; all zeros (or no finite sum) count as none.
template <class S>
weighting weigh(const float* importance, std::int64_t n) {
  double sum = 0;
  if (importance != nullptr)
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(importance[i]);
  if (!(sum > 0) || n == 0) return {nullptr, 1};
  const double factor = static_cast<double>(n) / sum;
  return {importance, static_cast<float>(factor < 3e38 ? factor : 3e38)};
}

/// `count` groups of Group values, padded with zeros: a whole number of vectors and of blocks of Groups groups.
template <class S, int Group, int Groups>
struct tile {
  static constexpr int count = S::width > Groups ? S::width : Groups;
  static constexpr int vectors = count / S::width;
  static constexpr int blocks = count / Groups;
  static_assert(count % S::width == 0 && count % Groups == 0);
  alignas(64) float x[Group * count];  // [Group, count]
  alignas(64) float w[Group * count];
  alignas(64) float total[count];  // sums of w

  /// One vector of groups; see measure.hpp.
  struct view {
    const float* xs;
    const float* ws;
    const float* totals;
    static constexpr std::int64_t size = Group;
    [[nodiscard]] lanes<S> x(std::int64_t i) const { return lanes<S>::load(xs + i * count); }
    [[nodiscard]] lanes<S> w(std::int64_t i) const { return lanes<S>::load(ws + i * count); }
    [[nodiscard]] lanes<S> total() const { return lanes<S>::load(totals); }
    static lanes<S> sum(lanes<S> v) { return v; }
    static lanes<S> largest(lanes<S> v) { return v; }
  };
  [[nodiscard]] view at(int vector) const {
    return {x + vector * S::width, w + vector * S::width, total + vector * S::width};
  }

  /// `n` groups that lie one after the other; weights of columns from `column` on.
  void load(const float* from, int n, const weighting& how, std::int64_t column) {
    transpose(from, n, x);
    if (how.importance != nullptr) {
      const lanes<S> factor = lanes<S>::all(how.factor), floor = lanes<S>::all(weighting::floor);
      transpose(how.importance + column, n, w);
      for (int i = 0; i < Group * count; i += S::width) fma(lanes<S>::load(w + i), factor, floor).store(w + i);
    } else {
      for (int i = 0; i < Group * count; ++i) w[i] = 1;
    }
    for (int g = n; g < count; ++g)
      for (int i = 0; i < Group; ++i) x[i * count + g] = w[i * count + g] = 0;
    for (int v = 0; v < vectors; ++v) {
      lanes<S> sum = lanes<S>::all(0);
      for (int i = 0; i < Group; ++i) sum = sum + at(v).w(i);
      sum.store(total + v * S::width);
    }
  }

  /// to[i][g] = from[g][i], n groups g: four by four where vectors are as long, as one float is stored at a time else.
  static void transpose(const float* from, int n, float* to) {
    int g = 0;
    if constexpr (S::width >= 4) {
      using four = float __attribute__((vector_size(16), aligned(4), may_alias));
      for (; g + 4 <= n; g += 4, from += 4 * Group)
        for (int i = 0; i < Group; i += 4) {
          const auto row = [&](int k) { return *reinterpret_cast<const four*>(from + k * Group + i); };
          const auto put = [&](int k, four v) { *reinterpret_cast<four*>(to + (i + k) * count + g) = v; };
          const four ab = __builtin_shufflevector(row(0), row(1), 0, 4, 1, 5);
          const four cd = __builtin_shufflevector(row(2), row(3), 0, 4, 1, 5);
          const four ef = __builtin_shufflevector(row(0), row(1), 2, 6, 3, 7);
          const four gh = __builtin_shufflevector(row(2), row(3), 2, 6, 3, 7);
          put(0, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
          put(1, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
          put(2, __builtin_shufflevector(ef, gh, 0, 1, 4, 5));
          put(3, __builtin_shufflevector(ef, gh, 2, 3, 6, 7));
        }
    }
    for (; g < n; ++g, from += Group)
      for (int i = 0; i < Group; ++i) to[i * count + g] = from[i];
  }
};

/// A whole row as one group: all lanes share its sums.
template <class S>
struct row_view {
  const float* xs;
  const float* importance;
  float factor;
  std::int64_t whole;  ///< Vectors without a rest.
  std::int64_t size;
  alignas(64) float rest[S::width];
  alignas(64) float rest_w[S::width];

  row_view(const float* x, std::int64_t n, const weighting& how)
      : xs(x), importance(how.importance), factor(how.factor), whole(n / S::width), size(whole) {
    const std::int64_t done = whole * S::width;
    size += done < n ? 1 : 0;
    for (int l = 0; l < S::width; ++l) {
      const bool here = done + l < n;
      rest[l] = here ? x[done + l] : 0;
      rest_w[l] = !here ? 0 : importance != nullptr ? importance[done + l] * factor + weighting::floor : 1;
    }
  }
  [[nodiscard]] lanes<S> x(std::int64_t i) const { return lanes<S>::load(i < whole ? xs + i * S::width : rest); }
  [[nodiscard]] lanes<S> w(std::int64_t i) const {
    using V = lanes<S>;
    if (i == whole) return V::load(rest_w);
    if (importance == nullptr) return V::all(1);
    return fma(V::load(importance + i * S::width), V::all(factor), V::all(weighting::floor));
  }
  static lanes<S> sum(lanes<S> v) { return lanes<S>::all(S::sum(v.v)); }
  static lanes<S> largest(lanes<S> v) { return lanes<S>::all(S::largest(v.v)); }
};

}  // namespace flywheel::inline v0::formats::encoding
