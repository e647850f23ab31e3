// Spherical interpolation from the base (t = 0) to the other model (t = 1), the tensor as one vector (Shoemake 1985):
//   out = sin((1 - t) theta) / sin(theta) base + sin(t theta) / sin(theta) x,   cos(theta) of the angle between them
// Vectors that are not normalised are interpolated; where |cos(theta)| > 0.9995, and for vectors of (nearly) no length,
// linearly. Beyond 0 and 1, t extrapolates. mergekit takes a vector of no length for one at a right angle, and rounds
// the cosine to f32: a cosine within 1e-6 of the limit may fall to the other side of it.
#pragma once

#include <cmath>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/parameters.hpp"

namespace flywheel::inline v0::adapt::merge {

inline constexpr parameter_info slerp_parameters[] = {
    {"t", false, 0, true, -unbounded, unbounded, "0: the base, 1: the other model"}};

struct slerp_rule {
  double t;
  void operator()(const gram& g, std::span<double> c) const {
    constexpr double collinear = 0.9995, shortest = 1e-8;
    const double cosine = g.cosine(0, 1, shortest), theta = std::acos(cosine);
    const bool straight = std::abs(cosine) > collinear || g.norm(0) <= shortest || g.norm(1) <= shortest;
    c[0] = straight ? 1 - t : std::sin((1 - t) * theta) / std::sin(theta);
    c[1] = straight ? t : std::sin(t * theta) / std::sin(theta);
  }
};

inline constexpr method slerp{.name = "slerp",
                              .base = base_use::required,
                              .max_models = 1,
                              .parameters = slerp_parameters,
                              .formula = "(sin((1-t) a) base + sin(t a) x) / sin(a), a: their angle (Shoemake 1985)",
                              .start = [](const task& what) {
                                return start_gram(slerp_rule{value_of(slerp_parameters, what, "t")}, what,
                                                  vectors::tensor, true);
                              }};

}  // namespace flywheel::inline v0::adapt::merge
