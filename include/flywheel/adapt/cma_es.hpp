// Evolution strategy with covariance matrix adaptation: minimises a function of real numbers by asking for its values.
// Header-only. N. Hansen, "The CMA Evolution Strategy: A Tutorial" (2016, arXiv 1604.00772; symbols and equation
// numbers below are its own), with negative weights; above `full_up_to` numbers with a diagonal covariance matrix (R.
// Ros & N. Hansen, "A simple modification in CMA-ES achieving linear time and space complexity", PPSN 2008).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/detail/portable_math.hpp"

namespace flywheel::inline v0::adapt {

struct cma_es_options {
  std::vector<double> start;         ///< [n], within the box.
  std::vector<double> lower, upper;  ///< [n] each, or empty: the whole space. Finite, lower < upper.
  double step = 0.25;                ///< First standard deviation; with a box in its widths.
  std::size_t population = 0;        ///< 0: 4 + 3 ln n.
  std::size_t full_up_to = 128;      ///< Numbers with a full covariance matrix; more have a diagonal one.
  std::uint64_t seed = 1;
};

/// Everything that changes from generation to generation: a search that is created with the same options and continued
/// from it goes on as if it had never stopped, bit for bit. Within a generation it is that of its beginning. Plain
/// data.
struct cma_es_state {
  std::uint64_t generation = 0, evaluations = 0;
  std::uint64_t random = 0;        ///< Of the generator.
  double step = 0;                 ///< sigma
  std::vector<double> mean;        ///< [n] m, in widths of the box from its lower corner.
  std::vector<double> covariance;  ///< C: [n, n], or its diagonal [n].
  std::vector<double> step_path;   ///< [n] p_sigma
  std::vector<double> path;        ///< [n] p_c
  std::vector<double> best;        ///< [n], within the box; empty before the first generation.
  double best_value = 0;
};

/// One search. The same numbers for the same options on every machine (compiled without contraction). Bounds by
/// reflection: the search runs in the whole space, which is folded at the faces of the box, so that a point that leaves
/// it comes back from the same side. Not thread-safe.
class cma_es {
 public:
  /// Errors: invalid_argument (sizes; a box or start that is none; step; a population below 2).
  [[nodiscard]] static result<cma_es> create(cma_es_options options) {
    const std::size_t n = options.start.size();
    const auto wrong = [](const char* what, const char* where) { return error{errc::invalid_argument, what, where}; };
    if (n == 0) return wrong("there is nothing to search over", "start");
    if (!(options.step > 0) || !std::isfinite(options.step)) return wrong("must be above 0", "step");
    if (options.population == 1) return wrong("must be at least 2", "population");
    if (options.lower.size() != options.upper.size() || (!options.lower.empty() && options.lower.size() != n))
      return wrong("bounds are one number for each of start, or none", "lower");
    for (std::size_t i = 0; i < n; ++i) {
      if (!std::isfinite(options.start[i])) return wrong("must be finite", "start");
      if (options.lower.empty()) continue;
      const double low = options.lower[i], high = options.upper[i];
      if (!std::isfinite(low) || !std::isfinite(high) || !(low < high))
        return wrong("must be finite, and below upper", "lower");
      if (options.start[i] < low || options.start[i] > high) return wrong("lies outside the bounds", "start");
    }
    return cma_es(std::move(options));
  }

  [[nodiscard]] std::size_t size() const noexcept { return n_; }
  [[nodiscard]] std::size_t population() const noexcept { return lambda_; }
  [[nodiscard]] const cma_es_state& state() const noexcept { return s_; }

  /// Continues from there. Errors: invalid_argument (the state of a search of another size; numbers that are none).
  [[nodiscard]] result<void> restore(cma_es_state state) {
    const auto fits = [](const std::vector<double>& v, std::size_t size) {
      return v.size() == size && std::all_of(v.begin(), v.end(), [](double x) { return std::isfinite(x); });
    };
    if (!fits(state.mean, n_) || !fits(state.step_path, n_) || !fits(state.path, n_) ||
        !fits(state.covariance, s_.covariance.size()) || !(state.step > 0) || !std::isfinite(state.step) ||
        !(state.best.empty() || fits(state.best, n_)))
      return error{errc::invalid_argument, "is not the state of a search over " + std::to_string(n_) + " numbers",
                   "state"};
    s_ = std::move(state);
    asked_ = false;
    return {};
  }

  /// The candidates of this generation, one after the other: [population, size], within the box. The same until tell().
  [[nodiscard]] std::span<const double> ask() {
    if (!asked_) sample();
    asked_ = true;
    return candidates_;
  }

  /// What each candidate is worth, less is better; what is not a number is worse than all. [population]. The next
  /// generation begins. Errors: invalid_argument (another number of values; ask() was not called).
  [[nodiscard]] result<void> tell(std::span<const double> values) {
    if (!asked_) return error{errc::invalid_argument, "no candidates were asked for", "tell"};
    if (values.size() != lambda_)
      return error{errc::invalid_argument, "takes one value for each of " + std::to_string(lambda_) + " candidates",
                   "tell"};
    asked_ = false;
    const auto worth = [&](std::size_t i) {
      return std::isnan(values[i]) ? std::numeric_limits<double>::infinity() : values[i];
    };
    std::vector<std::size_t> order(lambda_);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return worth(a) < worth(b); });
    s_.evaluations += lambda_;
    if (const double value = worth(order[0]); std::isfinite(value) && (s_.best.empty() || value < s_.best_value)) {
      const double* from = &candidates_[order[0] * n_];
      s_.best.assign(from, from + n_);
      s_.best_value = value;
    }
    adapt(order);
    s_.random = random_;
    ++s_.generation;
    return {};
  }

  /// The middle of the search, within the box.
  [[nodiscard]] std::vector<double> mean() const {
    std::vector<double> at(n_);
    for (std::size_t i = 0; i < n_; ++i) at[i] = place(i, s_.mean[i]);
    return at;
  }

 private:
  explicit cma_es(cma_es_options options) : o_(std::move(options)), n_(o_.start.size()) {
    const auto n = static_cast<double>(n_);
    lambda_ = o_.population > 0 ? o_.population : 4 + static_cast<std::size_t>(3 * detail::portable_log(n));
    full_ = n_ <= o_.full_up_to;
    // (49) to (53): weights, positive and negative
    const std::size_t mu = lambda_ / 2;
    weights_.resize(lambda_);
    double sums[2] = {}, squares[2] = {};
    for (std::size_t i = 0; i < lambda_; ++i) {
      weights_[i] = detail::portable_log((static_cast<double>(lambda_) + 1) / 2) -
                    detail::portable_log(static_cast<double>(i + 1));
      const std::size_t side = i < mu ? 0 : 1;
      sums[side] += weights_[i];
      squares[side] += weights_[i] * weights_[i];
    }
    mu_eff_ = sums[0] * sums[0] / squares[0];
    const double mu_eff_minus = squares[1] > 0 ? sums[1] * sums[1] / squares[1] : 0;
    // (55) to (58)
    c_sigma_ = (mu_eff_ + 2) / (n + mu_eff_ + 5);
    d_sigma_ = 1 + 2 * std::max(0.0, std::sqrt(std::max(0.0, (mu_eff_ - 1) / (n + 1))) - 1) + c_sigma_;
    c_c_ = (4 + mu_eff_ / n) / (n + 4 + 2 * mu_eff_ / n);
    c_1_ = 2 / ((n + 1.3) * (n + 1.3) + mu_eff_);
    c_mu_ = std::min(1 - c_1_, 2 * (0.25 + mu_eff_ + 1 / mu_eff_ - 2) / ((n + 2) * (n + 2) + mu_eff_));
    if (!full_) {  // Ros & Hansen: fewer numbers are learnt faster
      c_1_ = std::min(1.0, c_1_ * (n + 2) / 3);
      c_mu_ = std::min(1 - c_1_, c_mu_ * (n + 2) / 3);
    }
    const double scale_minus =
        std::min({1 + c_1_ / c_mu_, 1 + 2 * mu_eff_minus / (mu_eff_ + 2), (1 - c_1_ - c_mu_) / (n * c_mu_)});
    weight_sum_ = 0;
    for (double& w : weights_) {
      w = w >= 0 ? w / sums[0] : w * scale_minus / -sums[1];
      weight_sum_ += w;
    }
    expected_norm_ = std::sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n));

    s_.random = o_.seed;
    s_.step = o_.step;
    s_.mean.resize(n_);
    for (std::size_t i = 0; i < n_; ++i)
      s_.mean[i] = o_.lower.empty() ? o_.start[i] : (o_.start[i] - o_.lower[i]) / (o_.upper[i] - o_.lower[i]);
    s_.covariance.assign(full_ ? n_ * n_ : n_, full_ ? 0 : 1);
    if (full_)
      for (std::size_t i = 0; i < n_; ++i) s_.covariance[i * n_ + i] = 1;
    s_.step_path.assign(n_, 0);
    s_.path.assign(n_, 0);
  }

  /// SplitMix64 (Steele, Lea & Flood 2014), in (-1, 1).
  double signed_uniform() {
    std::uint64_t x = random_ += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    x ^= x >> 31;
    return (static_cast<double>(x >> 11) + 0.5) * 0x1p-52 - 1;
  }
  /// Marsaglia & Bray's polar method. The second deviate is left, so that the state is one number.
  double normal() {
    for (;;) {
      const double u = signed_uniform(), v = signed_uniform(), s = u * u + v * v;
      if (s < 1 && s > 0) return u * std::sqrt(-2 * detail::portable_log(s) / s);
    }
  }

  /// A coordinate of the search as the caller's: folded at the bounds, which are 0 and 1.
  [[nodiscard]] double place(std::size_t i, double x) const {
    if (o_.lower.empty()) return x;
    double folded = std::abs(x - 2 * std::floor(x / 2));  // in [0, 2)
    if (folded > 1) folded = 2 - folded;
    return std::clamp(o_.lower[i] + folded * (o_.upper[i] - o_.lower[i]), o_.lower[i], o_.upper[i]);
  }

  /// (38) to (40): y = B D z, x = m + sigma y
  void sample() {
    if (full_)
      decompose();
    else
      for (std::size_t i = 0; i < n_; ++i) roots_[i] = std::sqrt(s_.covariance[i]);
    random_ = s_.random;
    z_.resize(lambda_ * n_);
    y_.assign(lambda_ * n_, 0);
    candidates_.resize(lambda_ * n_);
    for (double& z : z_) z = normal();
    for (std::size_t k = 0; k < lambda_; ++k) {
      const double* z = &z_[k * n_];
      double* y = &y_[k * n_];
      for (std::size_t j = 0; j < n_; ++j) {
        if (!full_) {
          y[j] = roots_[j] * z[j];
          continue;
        }
        for (std::size_t i = 0; i < n_; ++i) y[i] += axes_[j * n_ + i] * (roots_[j] * z[j]);
      }
      for (std::size_t i = 0; i < n_; ++i) candidates_[k * n_ + i] = place(i, s_.mean[i] + s_.step * y[i]);
    }
  }

  /// (41) to (47), with cm = 1.
  void adapt(std::span<const std::size_t> order) {
    const auto n = static_cast<double>(n_);
    const std::size_t mu = lambda_ / 2;
    std::vector<double> y(n_, 0), z(n_, 0), whitened(n_, 0);  // <y>_w, and C^(-1/2) <y>_w = B <z>_w
    for (std::size_t k = 0; k < mu; ++k)
      for (std::size_t i = 0; i < n_; ++i) {
        y[i] += weights_[k] * y_[order[k] * n_ + i];
        z[i] += weights_[k] * z_[order[k] * n_ + i];
      }
    if (full_)
      for (std::size_t j = 0; j < n_; ++j)
        for (std::size_t i = 0; i < n_; ++i) whitened[i] += axes_[j * n_ + i] * z[j];
    else
      whitened = z;
    double norm = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      s_.mean[i] += s_.step * y[i];
      s_.step_path[i] = (1 - c_sigma_) * s_.step_path[i] + std::sqrt(c_sigma_ * (2 - c_sigma_) * mu_eff_) * whitened[i];
      norm += s_.step_path[i] * s_.step_path[i];
    }
    norm = std::sqrt(norm);
    const double faded =
        detail::portable_exp(2 * static_cast<double>(s_.generation + 1) * detail::portable_log(1 - c_sigma_));
    const bool steady = norm / std::sqrt(1 - faded) < (1.4 + 2 / (n + 1)) * expected_norm_;  // h_sigma
    s_.step *= detail::portable_exp(std::min(1.0, c_sigma_ / d_sigma_ * (norm / expected_norm_ - 1)));
    for (std::size_t i = 0; i < n_; ++i)
      s_.path[i] = (1 - c_c_) * s_.path[i] + (steady ? std::sqrt(c_c_ * (2 - c_c_) * mu_eff_) * y[i] : 0);
    const double keep = 1 - c_1_ - c_mu_ * weight_sum_ + (steady ? 0 : c_1_ * c_c_ * (2 - c_c_));
    std::vector<double> w(lambda_);
    for (std::size_t k = 0; k < lambda_; ++k) {
      w[k] = c_mu_ * weights_[k];
      if (weights_[k] >= 0) continue;
      const double* zk = &z_[order[k] * n_];  // |C^(-1/2) y| = |z|
      w[k] *= n / std::max(std::inner_product(zk, zk + n_, zk, 0.0), std::numeric_limits<double>::min());
    }
    const auto updated = [&](double c, std::size_t i, std::size_t j) {
      c = keep * c + c_1_ * s_.path[i] * s_.path[j];
      for (std::size_t k = 0; k < lambda_; ++k) c += w[k] * y_[order[k] * n_ + i] * y_[order[k] * n_ + j];
      return c;
    };
    for (std::size_t i = 0; i < n_; ++i) {
      if (!full_) {
        s_.covariance[i] = std::max(updated(s_.covariance[i], i, i), smallest);
        continue;
      }
      for (std::size_t j = 0; j <= i; ++j)
        s_.covariance[i * n_ + j] = s_.covariance[j * n_ + i] = updated(s_.covariance[i * n_ + j], i, j);
    }
  }

  /// C = B D^2 B^T by Jacobi's rotations: slower than others for large matrices, but short, and exact for small
  /// eigenvalues. axes_: rows are eigenvectors.
  void decompose() {
    std::vector<double> c = s_.covariance;
    axes_.assign(n_ * n_, 0);
    for (std::size_t i = 0; i < n_; ++i) axes_[i * n_ + i] = 1;
    constexpr int most_sweeps = 60;
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      bool rotated = false;
      for (std::size_t p = 0; p < n_; ++p)
        for (std::size_t q = p + 1; q < n_; ++q) {
          const double apq = c[p * n_ + q], app = c[p * n_ + p], aqq = c[q * n_ + q];
          if (std::abs(apq) <= 0x1p-52 * std::sqrt(std::abs(app * aqq))) continue;
          rotated = true;
          const double theta = (aqq - app) / (2 * apq);
          const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
          const double cosine = 1 / std::sqrt(t * t + 1), sine = t * cosine;
          const auto rotate = [&](double& a, double& b) {
            const double x = a, y = b;
            a = cosine * x - sine * y;
            b = sine * x + cosine * y;
          };
          for (std::size_t k = 0; k < n_; ++k) rotate(c[k * n_ + p], c[k * n_ + q]);
          for (std::size_t k = 0; k < n_; ++k) rotate(c[p * n_ + k], c[q * n_ + k]);
          for (std::size_t k = 0; k < n_; ++k) rotate(axes_[p * n_ + k], axes_[q * n_ + k]);
        }
      if (!rotated) break;
    }
    for (std::size_t i = 0; i < n_; ++i) roots_[i] = std::sqrt(std::max(c[i * n_ + i], smallest));
  }

  static constexpr double smallest = 1e-30;  ///< Of variances: rounding must not make them negative.

  cma_es_options o_;
  std::size_t n_, lambda_ = 0;
  bool full_ = true;
  std::vector<double> weights_;  ///< [lambda] w_i
  double weight_sum_ = 0, mu_eff_ = 0, c_sigma_ = 0, d_sigma_ = 0, c_c_ = 0, c_1_ = 0, c_mu_ = 0, expected_norm_ = 0;
  cma_es_state s_;
  bool asked_ = false;
  std::uint64_t random_ = 0;  ///< Of the generator, behind this generation's candidates.
  std::vector<double> axes_, roots_ = std::vector<double>(n_);  ///< B^T, D
  std::vector<double> z_, y_, candidates_;                      ///< [lambda, n]
};

}  // namespace flywheel::inline v0::adapt
