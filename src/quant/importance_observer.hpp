// Sums of squares of what goes into a model's weights.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flywheel/device/observer.hpp"
#include "flywheel/quant/importance.hpp"

namespace flywheel::inline v0::quant {

/// For one session at a time. Sums do not depend on the number of threads.
class importance_observer final : public device::observer {
 public:
  void begin(std::span<const device::observation_point> points) override;
  void observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept override;
  /// What was seen so far, by tensor; what goes into a tensor at several points is added up. Error: invalid_argument,
  /// naming the tensor, when a sum is not finite.
  [[nodiscard]] result<importance_matrix> take() const;

 private:
  struct sums {
    device::observation_point point;
    std::vector<double> squares;     ///< [matrices, cols]
    std::vector<std::int64_t> rows;  ///< [matrices]
  };
  std::vector<sums> points_;
};

}  // namespace flywheel::inline v0::quant
