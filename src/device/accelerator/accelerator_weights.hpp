// Weights as an accelerator keeps them: matrices in the device's own layout in its own memory, vectors that the host
// needs around products as f32.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "flywheel/device/device.hpp"
#include "src/device/accelerator/vendor_device.hpp"

namespace flywheel::inline v0::device {

/// What a weight's type is to a device; nothing if devices do not take it.
[[nodiscard]] std::optional<flywheel_weight_format> vendor_format(dtype type) noexcept;

/// The product with a matrix of the graph, for any number of rows. Its type has a vendor_format.
[[nodiscard]] flywheel_matmul product_of(const graph::weight_info& weight) noexcept;

struct vendor_matrix {
  flywheel_matmul op{};
  std::uint64_t packed_bytes = 0;
  vendor_buffer memory;  ///< Empty when weights were only measured.
};

class accelerator_weights final : public device_weights {
 public:
  /// Sizes only.
  static result<accelerator_weights> layout(std::span<const subgraph> parts, const io::archive& file,
                                            const std::shared_ptr<const vendor_device>& owner);
  /// layout(), then reads, packs and uploads. Errors also: cancelled.
  static result<std::shared_ptr<const device_weights>> load(std::span<const subgraph> parts, const io::archive& file,
                                                            std::shared_ptr<const vendor_device> owner, executor& pool,
                                                            const control& control);

  [[nodiscard]] std::size_t bytes() const noexcept override { return static_cast<std::size_t>(total_); }
  /// Null for what was not loaded.
  [[nodiscard]] const vendor_matrix* matrix(const graph::weight_info& weight) const;
  /// Null for what was not loaded, or only measured.
  [[nodiscard]] const float* vector(const graph::weight_info& weight) const;
  [[nodiscard]] bool loaded() const noexcept { return loaded_; }

 private:
  /// Name, first row, elements: the parts of a fused tensor are packed one by one.
  using key = std::tuple<std::string, std::int64_t, std::int64_t>;
  static key key_of(const graph::weight_info& w) { return {w.name, w.first_row, w.dims.elements()}; }
  result<void> upload(const graph::weight_info& weight, vendor_matrix& m, const io::archive& file,
                      const std::shared_ptr<const vendor_device>& owner, executor& pool);

  std::map<key, std::pair<graph::weight_info, vendor_matrix>> matrices_;
  std::map<key, std::pair<graph::weight_info, std::vector<float>>> vectors_;
  std::uint64_t total_ = 0;
  bool loaded_ = false;
};

}  // namespace flywheel::inline v0::device
