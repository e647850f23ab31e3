// Products to compute: operands, what must come out, and a place on the device with guards around everything.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device_conformance/probe.hpp"

namespace flywheel::kit {

[[nodiscard]] std::int64_t group_of(const flywheel_matmul& op) noexcept;
[[nodiscard]] std::int64_t groups_of(const flywheel_matmul& op) noexcept;
/// "matmul of 32 rows, n 64, k 300, 4-bit weights with a scale per 128"
[[nodiscard]] std::string describe(const flywheel_matmul& op);
[[nodiscard]] std::string describe(const flywheel_weight_format& format);
[[nodiscard]] flywheel_matmul make_op(std::int64_t rows, std::int64_t n, std::int64_t k,
                                      const flywheel_weight_format& format, std::uint32_t input = 0);

/// An int8 matrix with a scale per group of a row.
struct quantized {
  std::vector<std::int8_t> codes;  ///< [rows, k]
  std::vector<float> scales;       ///< [rows, groups]
};

enum class filling : std::uint8_t {
  random,
  extreme,  ///< Codes at both ends of their range, all of one sign in some rows: the largest sums.
  special,  ///< Zeros of both signs, NaN, infinities, subnormal scales.
};

/// `bits`: 8 for activations and 8-bit weights (-127..127), 4 (-8..7).
[[nodiscard]] quantized fill(std::int64_t rows, std::int64_t k, std::int64_t group, int bits, filling how,
                             std::mt19937_64& random);

/// The formula of plugin.h, one operation after the other: y [rows, n].
[[nodiscard]] std::vector<float> reference(const flywheel_matmul& op, const quantized& x, const quantized& w);

/// What a device is asked to compute.
struct workload {
  std::vector<flywheel_matmul> ops;
  std::vector<quantized> inputs;   ///< [n_inputs]
  std::vector<quantized> weights;  ///< [ops]
};
[[nodiscard]] workload make_workload(std::vector<flywheel_matmul> ops, filling how, std::mt19937_64& random);

/// Where a workload's operands lie.
enum class placing : std::uint8_t {
  apart,     ///< A buffer for each operand.
  together,  ///< All in one buffer, at offsets.
};

/// A workload with its program and buffers on a device.
class bound_workload {
 public:
  /// Compiles, loads, packs and writes the operands. `program`: taken instead of compiling.
  bound_workload(probe& device, workload work, placing where, std::shared_ptr<const program> program = nullptr);

  [[nodiscard]] flywheel_fence submit(std::span<const flywheel_fence> waits = {});
  [[nodiscard]] flywheel_fence submit_with(const flywheel_bindings& bindings,
                                           std::span<const flywheel_fence> waits = {}) {
    return device_.submit(program_->get(), bindings, waits);
  }
  /// After the submission has ended: guards, operands and results; a finding names the first that is wrong.
  void check();
  /// submit, wait, check.
  void run();

  [[nodiscard]] const std::shared_ptr<const program>& loaded() const noexcept { return program_; }
  [[nodiscard]] flywheel_region output(std::size_t op) const { return regions_of(outputs_)[op]; }
  /// From now on the scales of input `i` are those that lie at `region`, and are expected to be `values`.
  void take_scales_from(std::size_t i, flywheel_region region, std::vector<float> values);
  [[nodiscard]] const std::vector<std::vector<float>>& expected() const noexcept { return expected_; }

 private:
  /// Bytes on the device between two guards.
  struct operand {
    std::string name;             ///< "the codes of input 0"
    std::vector<std::byte> data;  ///< What was written; of outputs only the size counts.
    bool is_output = false;
    std::size_t buffer = 0;
    std::uint64_t offset = 0;  ///< Of the data.
  };

  void place(placing where);
  void write();
  [[nodiscard]] std::size_t add(std::string name, std::vector<std::byte> data, bool is_output);
  [[nodiscard]] flywheel_region region(std::size_t operand) const;
  [[nodiscard]] std::vector<flywheel_region> regions_of(const std::vector<std::size_t>& which) const;
  void check_guards(const operand& o, const std::byte* base) const;
  void compare(std::size_t op, const std::byte* got) const;
  [[nodiscard]] std::string which_op(std::size_t op) const;

  probe& device_;
  workload work_;
  std::shared_ptr<const program> program_;
  std::vector<std::vector<float>> expected_;
  std::uint64_t guard_;
  std::vector<operand> operands_;
  std::vector<std::size_t> codes_, scales_, weights_, outputs_;  ///< Indices into operands_.
  std::vector<buffer> buffers_;
  std::vector<std::uint64_t> buffer_bytes_;
  std::vector<flywheel_input> bound_inputs_;
  std::vector<flywheel_region> bound_weights_, bound_outputs_;
};

}  // namespace flywheel::kit
