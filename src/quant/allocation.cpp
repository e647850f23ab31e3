#include "src/quant/allocation.hpp"

#include <algorithm>
#include <tuple>

namespace flywheel::inline v0::quant {
namespace {

/// Indices of the choices on the lower convex hull, by rising bytes and falling error.
std::vector<std::size_t> lower_hull(const std::vector<choice>& all) {
  std::vector<std::size_t> order(all.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::tie(all[a].bytes, all[a].error, a) < std::tie(all[b].bytes, all[b].error, b);
  });
  const auto slope = [&](std::size_t a, std::size_t b) {  // error saved per byte from a to b
    return (all[a].error - all[b].error) / static_cast<double>(all[b].bytes - all[a].bytes);
  };
  std::vector<std::size_t> hull;
  for (const std::size_t i : order) {
    if (!hull.empty() && (all[i].error >= all[hull.back()].error || all[i].bytes == all[hull.back()].bytes)) continue;
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

/// What a change of one tensor brings.
struct change {
  std::size_t tensor = 0, to = 0;
  std::int64_t bytes = 0;  ///< More than before.
  double error = 0;        ///< Less than before.
};

std::vector<change> all_changes(std::span<const std::vector<choice>> tensors, const std::vector<std::size_t>& picked) {
  std::vector<change> changes;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const choice& now = tensors[t][picked[t]];
    for (std::size_t c = 0; c < tensors[t].size(); ++c)
      if (c != picked[t])
        changes.push_back({t, c, static_cast<std::int64_t>(tensors[t][c].bytes) - static_cast<std::int64_t>(now.bytes),
                           now.error - tensors[t][c].error});
  }
  return changes;
}

}  // namespace

std::uint64_t least_bytes(std::span<const std::vector<choice>> tensors) noexcept {
  std::uint64_t sum = 0;
  for (const std::vector<choice>& choices : tensors)
    sum += std::min_element(choices.begin(), choices.end(), [](const choice& a, const choice& b) {
             return a.bytes < b.bytes;
           })->bytes;
  return sum;
}

std::optional<std::vector<std::size_t>> allocate(std::span<const std::vector<choice>> tensors, std::uint64_t budget) {
  struct step {
    std::size_t tensor, to;
    std::int64_t bytes;
    double gain;  ///< Error saved per byte.
  };
  std::vector<std::size_t> picked;
  std::vector<step> steps;
  auto left = static_cast<std::int64_t>(budget);
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const std::vector<std::size_t> hull = lower_hull(tensors[t]);
    picked.push_back(hull.front());
    left -= static_cast<std::int64_t>(tensors[t][hull.front()].bytes);
    for (std::size_t i = 1; i < hull.size(); ++i) {
      const choice &a = tensors[t][hull[i - 1]], &b = tensors[t][hull[i]];
      const auto more = static_cast<std::int64_t>(b.bytes - a.bytes);
      steps.push_back({t, hull[i], more, (a.error - b.error) / static_cast<double>(more)});
    }
  }
  if (left < 0) return std::nullopt;
  // Along a hull gains fall, so the order of all steps keeps that of each tensor's.
  std::stable_sort(steps.begin(), steps.end(), [](const step& a, const step& b) { return a.gain > b.gain; });
  std::vector<bool> closed(tensors.size(), false);
  for (const step& s : steps) {
    if (closed[s.tensor]) continue;
    if (s.bytes > left) {
      closed[s.tensor] = true;
      continue;
    }
    picked[s.tensor] = s.to;
    left -= s.bytes;
  }
  // One tensor up; or one up and another down, as long as the sum of errors falls.
  for (int round = 0; round < 1000; ++round) {
    const std::vector<change> changes = all_changes(tensors, picked);
    change best, other;
    double most = 0;
    bool paired = false;
    for (const change& a : changes) {
      if (a.error <= 0) continue;  // a goes up
      if (a.bytes <= left && a.error > most) most = a.error, best = a, paired = false;
      for (const change& b : changes) {
        if (b.tensor == a.tensor || b.error > 0 || a.bytes + b.bytes > left) continue;
        if (a.error + b.error > most * (1 + 1e-9)) most = a.error + b.error, best = a, other = b, paired = true;
      }
    }
    if (most <= 0) break;
    picked[best.tensor] = best.to;
    left -= best.bytes;
    if (!paired) continue;
    picked[other.tensor] = other.to;
    left -= other.bytes;
  }
  return picked;
}

}  // namespace flywheel::inline v0::quant
