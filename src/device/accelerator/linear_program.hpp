// A compiled part of a graph on an accelerator: linear nodes, one after the other. The host normalizes and rounds the
// activations of a bucket of rows while the device multiplies the bucket before; what stands behind products (bias,
// gate, activation, residual) it does when they have come back.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/device/device.hpp"
#include "kernels/registry.hpp"
#include "src/device/accelerator/accelerator_weights.hpp"
#include "src/device/accelerator/buckets.hpp"
#include "src/device/accelerator/io_pool.hpp"
#include "src/device/accelerator/program_store.hpp"
#include "src/device/accelerator/vendor_device.hpp"

namespace flywheel::inline v0::device {

constexpr std::size_t most_products = 8;  ///< Of one node.

class linear_program final : public executable {
 public:
  static result<std::unique_ptr<const executable>> compile(const subgraph& part, const kernels::kernel_set& kernels,
                                                           std::shared_ptr<const vendor_device> owner,
                                                           std::shared_ptr<program_store> programs,
                                                           std::shared_ptr<io_pool> buffers,
                                                           std::shared_ptr<const device_weights> weights);
  /// Bytes of the largest buffer that a node with these products needs for activations or results.
  [[nodiscard]] static std::uint64_t largest_buffer(std::span<const flywheel_matmul> ops,
                                                    const flywheel_device_caps& caps);
  [[nodiscard]] std::size_t scratch_bytes(std::int64_t max_tokens, std::int64_t max_outputs,
                                          unsigned workers) const override;
  [[nodiscard]] result<void> run(const bindings& b) const override;

 private:
  struct place {  ///< A value of the graph.
    graph::value value;
    std::uint32_t result = ~std::uint32_t{0};  ///< Index into bindings::results, if it is one.
    std::int64_t cols = 0;
    bool outputs = false;
    [[nodiscard]] float* in(const bindings& b) const noexcept {
      return result != ~std::uint32_t{0} ? b.results[result]
                                         : reinterpret_cast<float*>(b.arena + b.offsets[value.index]);
    }
  };
  struct product {
    const vendor_matrix* matrix = nullptr;
    const float* bias = nullptr;
    place out;
  };
  /// One linear node.
  struct step {
    graph::linear_attributes attributes;
    place x, residual;
    const float* norm = nullptr;
    std::int64_t group = 0;
    std::vector<product> products;
    std::array<std::shared_ptr<const vendor_executable>, bucket_rows.size()> programs;
    [[nodiscard]] std::int64_t groups() const noexcept { return (x.cols + group - 1) / group; }
  };
  struct job;
  class runner;

  linear_program(std::shared_ptr<const vendor_device> owner, std::shared_ptr<io_pool> pool)
      : owner_(std::move(owner)), pool_(std::move(pool)), buckets_(owner_->caps().tile_m) {}
  /// Where the scales of a bucket's activations begin in its input.
  [[nodiscard]] std::uint64_t scales_at(const step& s, std::size_t bucket) const;
  /// Of the results of a product, up to the next one's.
  [[nodiscard]] static std::uint64_t output_bytes(std::int64_t n, std::size_t bucket, const flywheel_device_caps& caps);
  [[nodiscard]] std::int64_t rows_of(const place& p, std::int64_t tokens, std::int64_t outputs) const noexcept {
    return p.outputs ? outputs : tokens;
  }
  std::shared_ptr<const vendor_device> owner_;
  std::shared_ptr<io_pool> pool_;
  std::shared_ptr<const device_weights> weights_;
  const kernels::kernel_set* kernels_ = nullptr;
  bucket_table buckets_;
  std::vector<step> steps_;
};

}  // namespace flywheel::inline v0::device
