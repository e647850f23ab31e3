// Weights as the CPU keeps them: matrices in the packed panels of the ISA cluster's kernels, vectors as f32, embedding
// rows in the file's format. Everything packed lies in one buffer, so that huge pages are not wasted on ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "flywheel/core/buffer.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::device {

/// How the nodes of a graph use a tensor; one tensor may have several uses (tied embeddings).
enum class weight_use : std::uint8_t {
  matmul,      ///< [n, k] or [experts, n, k]: panels for the kernel.
  vector,      ///< f32 values.
  transposed,  ///< f32 values of a matrix, column after column.
  rows,        ///< Rows decoded one at a time.
};

/// One tensor, or some of its rows, ready for one use.
struct packed_weight {
  weight_use use = weight_use::vector;
  dtype type = dtype::f32;
  shape dims;
  std::int64_t first_row = 0;                      ///< matmul
  const kernels::matmul_kernel* kernel = nullptr;  ///< matmul
  std::int64_t experts = 1, n = 0, k = 0;          ///< matmul
  std::size_t panel_bytes = 0;                     ///< matmul
  kernels::to_f32_fn to_f32 = nullptr;             ///< rows and vector
  std::size_t bytes = 0;                           ///< Of packed data; 0 when the rows stay in the file.
  std::size_t offset = 0;                          ///< Of packed data in the buffer.
  const std::byte* data = nullptr;                 ///< Packed data, or the rows in the mapped file.

  [[nodiscard]] std::int64_t panels() const noexcept { return (n + kernel->panel_cols - 1) / kernel->panel_cols; }
  [[nodiscard]] const float* floats() const noexcept { return reinterpret_cast<const float*>(data); }
  [[nodiscard]] const std::byte* expert(std::int64_t e) const noexcept {
    return data + static_cast<std::size_t>(e * panels()) * panel_bytes;
  }
};

class cpu_weights final : public device_weights {
 public:
  /// Sizes and offsets only. Errors: unsupported for tensor types without codec.
  static result<cpu_weights> layout(std::span<const subgraph> parts, const io::archive& file, kernels::cluster isa,
                                    activation_scales activations);
  /// layout(), then reads and packs.
  static result<std::shared_ptr<const device_weights>> load(std::span<const subgraph> parts, const io::archive& file,
                                                            kernels::cluster isa, activation_scales activations,
                                                            executor& pool, std::pmr::memory_resource* memory,
                                                            const control& control);

  [[nodiscard]] std::size_t bytes() const noexcept override { return total_; }
  /// Null when these rows of the tensor were not loaded for this use.
  [[nodiscard]] const packed_weight* find(const graph::weight_info& weight, weight_use use) const;

 private:
  /// Name, first row, elements and use: the parts of a fused tensor are packed one by one.
  using key = std::tuple<std::string, std::int64_t, std::int64_t, weight_use>;
  std::map<key, packed_weight> weights_;
  std::size_t total_ = 0;
  buffer storage_;
  io::archive file_;  ///< Keeps mapped rows alive.
};

}  // namespace flywheel::inline v0::device
