// Which device computes what of a model, and why, before a weight is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0 {

struct plan_options {
  flywheel::context context;   ///< Its instruction set is the CPU's; empty: the best one.
  std::int64_t positions = 0;  ///< That a token sees, for planned_operation::attention_multiply_adds.
};

/// One operation of the rewritten graph, at one row: one decoded token, or one token of a text.
struct planned_operation {
  graph::op kind = graph::op::linear;
  std::int64_t layer = -1;                  ///< From its attributes or the names of its weights; -1: none.
  std::vector<graph::weight_info> weights;  ///< In the order of its inputs: matrices, then biases, norms and others.
  std::size_t device = 0;                   ///< Index into device_plan::devices.
  std::size_t part = 0;                     ///< Of the parts that the graph is cut into, in execution order.
  std::vector<std::string> refusals;        ///< [device]: why each device before that does not take it.
  std::int64_t multiply_adds = 0;           ///< With weights (graph::multiply_adds).
  /// Of attention with `positions` visible positions: scores and values; windows see fewer.
  std::int64_t attention_multiply_adds = 0;
  std::uint64_t weight_bytes = 0;  ///< In the file.
  std::uint64_t read_bytes = 0;    ///< Of those, what one row reads: one row of a table, the chosen experts.
  double seconds = 0;              ///< As the device predicts (device::support::seconds); 0: it does not say.
};

/// What one device has to do per token.
struct planned_device {
  std::string name;  ///< device::capabilities::name
  std::size_t operations = 0;
  std::size_t parts = 0;
  std::int64_t multiply_adds = 0;
  std::uint64_t weight_bytes = 0;  ///< In the file, each tensor once; a tensor of two devices counts for both.
  double seconds = 0;              ///< Sum of what is predicted.
  /// The part of its multiply-adds whose time is in `seconds`, 0..1; 0 for the CPU, which predicts nothing.
  double predicted = 0;
};

struct device_plan {
  std::string architecture;
  std::vector<planned_device> devices;        ///< As given, then the CPU.
  std::vector<planned_operation> operations;  ///< In execution order.
  std::size_t parts = 0;
  /// Values of the graph that one device computes and another one uses, per token; a result that is not computed by the
  /// CPU counts as used there. A value that several operations of a device use goes there once. Token ids and weights
  /// are not counted.
  std::size_t transfers = 0;
  std::uint64_t transfer_bytes = 0;  ///< In f32, as the graph has them; devices may round them first.

  [[nodiscard]] FLYWHEEL_API std::int64_t multiply_adds() const noexcept;
};

/// Cuts the graph of a model's logits (an encoder's rows or scores) as model_options::devices would: each operation
/// goes to the first device that takes it, the CPU, which need not be given, takes the rest. Reads the header, no
/// weights. Thread-safe. Errors: unsupported (an architecture, a type of weights), malformed (keys and tensors),
/// invalid_argument (a null device, negative positions), out_of_memory; they name the file.
[[nodiscard]] FLYWHEEL_API result<device_plan> plan(const io::archive& file,
                                                    std::span<const std::shared_ptr<const device::device>> devices,
                                                    const plan_options& options = {});

}  // namespace flywheel::inline v0
