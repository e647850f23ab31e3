// Nearswap: takes the other model's numbers where they are near the base's.
//   out = w x + (1 - w) base,   w = t / max(|base - x|, 1e-6), between 0 and 1
#pragma once

#include <algorithm>
#include <cmath>

#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info nearswap_parameters[] = {
    {"t", false, 0, true, -unbounded, unbounded, "Numbers this near are taken over"}};

class nearswap_merger final : public merger {
 public:
  explicit nearswap_merger(float t) : t_(t) {}
  void combine(const slice& s, std::span<const double>, float* out) const override {
    const float* const x = s.models[0];
    for (std::int64_t i = 0; i < s.count; ++i) {
      const float w = std::clamp(t_ / std::max(std::abs(s.base[i] - x[i]), 1e-6F), 0.0F, 1.0F);
      out[i] = w * x[i] + (1 - w) * s.base[i];
    }
  }

 private:
  float t_;
};

inline constexpr method nearswap{
    .name = "nearswap",
    .base = base_use::required,
    .max_models = 1,
    .parameters = nearswap_parameters,
    .formula = "w x + (1-w) base, w = min(1, t / |base - x|)",
    .start = [](const task& what) -> std::unique_ptr<merger> {
      return std::make_unique<nearswap_merger>(static_cast<float>(value_of(nearswap_parameters, what, "t")));
    }};

}  // namespace flywheel::inline v0::adapt::merge
