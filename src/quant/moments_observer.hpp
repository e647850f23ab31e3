// Sums x x^T at every place that is wanted.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "flywheel/device/observer.hpp"
#include "flywheel/quant/calibration.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::quant {

/// For runs one after the other. Workers own tiles of the sums, so their number changes nothing.
class moments_observer final : public device::observer {
 public:
  moments_observer(const context& ctx, std::function<bool(std::string_view)> wants);

  void begin(std::span<const device::observation_point> points) override;
  [[nodiscard]] bool wants(const device::observation_point& point) const override;
  void observe(const device::observed_rows& seen, unsigned worker, unsigned workers) noexcept override;

  /// What was summed; the observer is then empty. Error: invalid_argument (not finite, naming the tensor).
  [[nodiscard]] result<moments_by_tensor> take();

 private:
  struct place {
    device::observation_point point;
    tensor_moments moments;  ///< Upper tiles only, until take().
  };
  f32_product product_;
  std::function<bool(std::string_view)> wants_;
  std::vector<place> places_;
  std::vector<buffer> scratch_;  ///< Of each worker.
};

}  // namespace flywheel::inline v0::quant
