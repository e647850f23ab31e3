// The device interface: who computes a part of a graph. The CPU is one device; an NPU takes the nodes that it says it
// can.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::device {

struct capabilities {
  std::string name;  ///< "cpu"
  std::string vendor;
  std::string arch;            ///< ISA cluster or chip.
  bool unified_memory = true;  ///< Reads and writes the host's memory without copies.
};

/// A device's answer about a node.
struct support {
  bool ok = false;
  std::string reason;  ///< Why not.
};

/// A part of a graph for one device: nodes in execution order. Weights come from the graph.
struct subgraph {
  const graph::graph* whole = nullptr;
  std::vector<std::uint32_t> nodes;
};

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
  std::byte* arena = nullptr;            ///< 64-byte aligned, memory_plan::arena_bytes.
  std::span<const std::size_t> offsets;  ///< memory_plan::offsets
  std::span<float* const> results;       ///< Memory of graph::outputs: [output rows, cols] each.
  std::byte* scratch = nullptr;          ///< 64-byte aligned, executable::scratch_bytes.
  flywheel::executor* executor = nullptr;
  std::stop_token stop;
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
  /// Errors: cancelled; device.
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
  [[nodiscard]] virtual result<std::shared_ptr<const device_weights>> measure(const subgraph& part,
                                                                              const io::archive& file) const = 0;
  /// Reads and packs the weights that the part's nodes use, in parallel.
  [[nodiscard]] virtual result<std::shared_ptr<const device_weights>> load(const subgraph& part,
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

/// Splits a graph into consecutive parts: each node goes to the first device of the list that supports it; weights and
/// ids follow their users. Error: unsupported, with every device's reason, when none supports a node.
[[nodiscard]] FLYWHEEL_API result<std::vector<placed_part>> partition(const graph::graph& g,
                                                                      std::span<const device* const> devices);

}  // namespace flywheel::inline v0::device
