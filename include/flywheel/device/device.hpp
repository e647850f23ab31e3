// The device interface: who computes a part of a graph. The CPU is one device; an NPU takes the nodes that it says it
// can.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/low_rank.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::device {

class observer;

/// Weights that a device takes: signed codes with a scale per `group` elements of a row, 0: per row.
struct weight_format {
  int bits = 8;
  std::int64_t group = 0;
};

struct capabilities {
  std::string name;  ///< "cpu"
  std::string vendor;
  std::string arch;                           ///< ISA cluster or chip.
  std::string driver;                         ///< Empty: none.
  bool unified_memory = true;                 ///< Reads and writes the host's memory without copies.
  bool static_shapes = false;                 ///< Programs are compiled for one number of rows.
  std::array<std::uint32_t, 3> tile = {};     ///< Of its matrix unit, m x n x k; zeros: not said.
  std::uint64_t scratch_bytes = 0;            ///< On-chip memory; 0: not said.
  std::uint64_t memory_bytes = 0;             ///< Of its own; 0: the host's.
  std::uint32_t queues = 1;                   ///< That work side by side.
  std::vector<weight_format> weight_formats;  ///< Empty: every format the library knows.
  double multiply_adds_per_second = 0;        ///< Peak; 0: not said.
  double bytes_per_second = 0;                ///< Of reading weights; 0: not said.
  double launch_seconds = 0;
  std::int64_t min_multiply_adds = 0;  ///< Per row; parts with less are not worth a submission.
};

/// A device's answer about a node.
struct support {
  bool ok = false;
  std::string reason;               ///< Why not.
  std::uint64_t scratch_bytes = 0;  ///< On-chip memory it would use.
  double seconds = 0;               ///< Expected for one row; 0: not known.
};

/// A part of a graph for one device: nodes in execution order. Weights come from the graph.
struct subgraph {
  const graph::graph* whole = nullptr;
  std::vector<std::uint32_t> nodes;
};

/// Every node of several parts, with its graph.
[[nodiscard]] FLYWHEEL_API std::vector<std::pair<const graph::graph*, std::uint32_t>> nodes_of(
    std::span<const subgraph> parts);

/// One sequence's tokens in a chunk.
struct sequence_slice {
  std::int64_t n_tokens = 0;                 ///< Consecutive rows of the chunk.
  std::int64_t first_position = 0;           ///< Position of the first of them.
  std::byte* const* const* pages = nullptr;  ///< [layer][page]: the KV pages up to the last of these positions. Null
                                             ///< where no attention of the graph is causal.
  /// [layer]: recurrent state (f32, laid out by its node) before the first of these tokens, zeros at position 0. Null
  /// where no node of the layer has any.
  const std::byte* const* state = nullptr;
  /// [layer]: where the run stores the state after the last of these tokens; never the memory of `state`, so that a run
  /// that fails or is cancelled leaves the old one whole.
  std::byte* const* next_state = nullptr;
  std::int64_t n_ctx = 0;  ///< Positions the sequence may grow to: chooses LongRoPE's factors.
};

/// Everything a run touches. All pointers stay valid during the run; nothing is allocated.
struct bindings {
  std::span<const std::int32_t> ids;          ///< [n_tokens]
  std::span<const std::int32_t> token_types;  ///< [n_tokens], or empty: all 0.
  std::span<const sequence_slice> sequences;  ///< Their n_tokens add up to ids.size().
  std::span<const std::int32_t> output_rows;  ///< Rows of the chunk whose results are wanted, ascending.
  dtype kv_type = dtype::f16;
  adapter_bindings adapters;             ///< Of the CPU alone: other devices are not given any.
  std::byte* arena = nullptr;            ///< 64-byte aligned, memory_plan::arena_bytes.
  std::span<const std::size_t> offsets;  ///< memory_plan::offsets
  std::span<float* const> results;       ///< Memory of graph::outputs: [output rows, cols] each.
  std::byte* scratch = nullptr;          ///< 64-byte aligned, executable::scratch_bytes.
  flywheel::executor* executor = nullptr;
  std::stop_token stop;
  flywheel::device::observer* observer = nullptr;  ///< Is shown what passes the graph's taps; null: nobody is.
};

/// Weights as one device holds them: packed once, immutable, shared by all its executables.
class FLYWHEEL_API device_weights {
 public:
  virtual ~device_weights();
  [[nodiscard]] virtual std::size_t bytes() const noexcept = 0;
};

/// A compiled part. Immutable; any number of threads may run it at the same time, each with its own arena and scratch.
class FLYWHEEL_API executable {
 public:
  virtual ~executable();
  /// Scratch for runs of at most these sizes on `workers` workers.
  [[nodiscard]] virtual std::size_t scratch_bytes(std::int64_t max_tokens, std::int64_t max_outputs,
                                                  unsigned workers) const = 0;
  /// Errors: cancelled; device: it is lost. What the run wrote by then is unspecified, what it read is unchanged, so
  /// that another device can do it again.
  [[nodiscard]] virtual result<void> run(const bindings& b) const = 0;
};

/// Stateless towards its users; thread-safe.
class FLYWHEEL_API device {
 public:
  virtual ~device();
  [[nodiscard]] virtual const capabilities& caps() const noexcept = 0;
  /// Pure: whether this device computes the node, or why not.
  [[nodiscard]] virtual support query(const graph::graph& g, const graph::node& n) const = 0;
  /// Sizes of what load() would hold, without reading tensor data. What is compiled with it can be asked for its
  /// scratch_bytes, but must not run.
  [[nodiscard]] virtual result<std::shared_ptr<const device_weights>> measure(std::span<const subgraph> parts,
                                                                              const io::archive& file) const = 0;
  /// Reads and packs the weights that the parts' nodes use, each once, in parallel. The parts may be of several graphs
  /// of one model.
  [[nodiscard]] virtual result<std::shared_ptr<const device_weights>> load(std::span<const subgraph> parts,
                                                                           const io::archive& file, executor& pool,
                                                                           std::pmr::memory_resource* memory,
                                                                           const control& control) const = 0;
  /// `weights` came from this device's load() for a part that uses at least the same tensors the same way.
  [[nodiscard]] virtual result<std::unique_ptr<const executable>> compile(
      const subgraph& part, std::shared_ptr<const device_weights> weights) const = 0;
};

/// The CPU with the kernels of an ISA cluster (a name from detect_isa).
[[nodiscard]] FLYWHEEL_API result<std::shared_ptr<const device>> make_cpu_device(
    std::string_view isa, activation_scales activations = activation_scales::automatic);

struct placed_part {
  std::size_t device = 0;  ///< Index into the list of devices.
  subgraph part;
};

/// Where a node went, and why.
struct placed_node {
  std::size_t device = 0;
  std::vector<std::string> refusals;  ///< [device]: why each device before that did not take it.
  support answer;                     ///< Of the device that takes it.
};

struct placement {
  std::vector<placed_part> parts;  ///< In execution order.
  std::vector<placed_node> nodes;  ///< [graph::nodes]; without meaning for sources (graph::is_source).
};

/// Cuts a graph into consecutive parts: each node goes to the first device of the list that supports it, weights and
/// ids follow their users, and a part with less work than its device's min_multiply_adds goes to the next ones. Being
/// consecutive, parts are convex: no value leaves one and comes back. Error: unsupported, with every device's reason,
/// when none supports a node.
[[nodiscard]] FLYWHEEL_API result<placement> partition(const graph::graph& g, std::span<const device* const> devices);

}  // namespace flywheel::inline v0::device
