// An observer that keeps every row it is shown.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/device/observer.hpp"

namespace flywheel::test {

/// For one run at a time.
class recording_observer final : public device::observer {
 public:
  void begin(std::span<const device::observation_point> all) override { points.assign(all.begin(), all.end()); }
  bool wants(const device::observation_point& point) const override { return !wanted || wanted(point); }
  void observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept override {
    if (worker + 1 != workers) return;
    auto& kept = rows[{seen.point, seen.expert}];
    kept.insert(kept.end(), seen.x, seen.x + seen.rows * seen.cols);
  }

  bool (*wanted)(const device::observation_point&) = nullptr;
  std::vector<device::observation_point> points;
  std::map<std::pair<std::uint32_t, std::int64_t>, std::vector<float>> rows;  ///< By point and expert.
};

}  // namespace flywheel::test
