// A compiled part of a graph on the CPU: steps, each of one or more phases, with one barrier after every phase.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flywheel/device/device.hpp"
#include "flywheel/device/observer.hpp"
#include "kernels/registry.hpp"
#include "src/device/cpu/cpu_weights.hpp"

namespace flywheel::inline v0::device {

constexpr std::int64_t block_columns = 256;  ///< Columns of a prefill tile: their weights stay in the L2 cache.

constexpr std::size_t align64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Where a value of the graph lies during a run.
struct operand {
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  std::uint32_t value = none;
  std::uint32_t result = none;  ///< Index into bindings::results, when the value is a result of the graph.
  std::int64_t cols = 0;
  bool outputs = false;  ///< One row per wanted output instead of one per token.
  [[nodiscard]] bool given() const noexcept { return value != none; }
};

/// What the workers of one run share.
struct run_state {
  const bindings* bound = nullptr;
  std::int64_t n_tokens = 0;
  std::int64_t n_outputs = 0;
  unsigned workers = 1;
  std::byte* tables = nullptr;  ///< Program's tables (rotary angles), valid for the whole run.
  std::byte* shared = nullptr;  ///< Scratch of the current step.
  std::byte* own = nullptr;     ///< Scratch of worker 0; that of worker w is own_bytes * w further.
  std::size_t own_bytes = 0;
  std::atomic<std::int64_t> next[2];  ///< Task counters of odd and even phases.
  std::atomic<bool> stopped{false};
  bool leave[2] = {false, false};  ///< Whether all workers leave after the barrier of an odd or even phase.

  [[nodiscard]] std::int64_t rows(const operand& o) const noexcept { return o.outputs ? n_outputs : n_tokens; }
  [[nodiscard]] float* at(const operand& o) const noexcept {
    if (o.result != operand::none) return bound->results[o.result];
    return reinterpret_cast<float*>(bound->arena + bound->offsets[o.value]);
  }
  /// True once the caller asked to stop: the phase then ends without its remaining tasks.
  [[nodiscard]] bool stopping() noexcept {
    if (stopped.load(std::memory_order_relaxed)) return true;
    if (!bound->stop.stop_requested()) return false;
    stopped.store(true, std::memory_order_relaxed);
    return true;
  }
};

/// One worker's view of a phase.
struct worker_state {
  run_state& run;
  unsigned index;
  std::atomic<std::int64_t>& counter;

  [[nodiscard]] std::byte* own() const noexcept { return run.own + run.own_bytes * index; }
  /// Calls body(task) for a share of [0, tasks): whoever is free takes the next one.
  template <class F>
  void take(std::int64_t tasks, F&& body) const {
    for (std::int64_t i; (i = counter.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      if (run.stopping()) return;
      body(i);
    }
  }
  /// Shows rows to the run's observer, if there is one; every worker calls it.
  void show(const observed_rows& rows) const {
    if (run.bound->observer && rows.rows > 0 && !run.stopping()) run.bound->observer->observe(rows, index, run.workers);
  }
  /// Calls body(begin, end) once with this worker's fixed share of [0, items).
  template <class F>
  void split(std::int64_t items, F&& body) const {
    const std::int64_t begin = items * index / run.workers, end = items * (index + 1) / run.workers;
    if (begin < end && !run.stopping()) body(begin, end);
  }
};

class step {
 public:
  virtual ~step() = default;
  /// Scratch that all workers share during the step, for chunks of at most these sizes.
  [[nodiscard]] virtual std::size_t shared_bytes(std::int64_t /*max_tokens*/, std::int64_t /*max_outputs*/) const {
    return 0;
  }
  /// Scratch of each worker.
  [[nodiscard]] virtual std::size_t own_bytes(std::int64_t /*max_tokens*/, std::int64_t /*max_outputs*/) const {
    return 0;
  }
  /// How many phases this run takes; every worker gets the same answer.
  [[nodiscard]] virtual int phases(const run_state&) const { return 1; }
  virtual void run(const worker_state& w, int phase) const = 0;
};

/// Rotary angles of the chunk's tokens, [tokens, n_rot] floats per kind of rotation: n_rot / 2 cosines, then the sines.
struct rope_table {
  graph::rope_attributes attributes;
  const float* factors = nullptr;
  const float* long_factors = nullptr;  ///< For sequences that may grow beyond the original context; or null.
  std::int64_t before = 0;              ///< Floats per token of the tables in front of this one.

  [[nodiscard]] float* row(const run_state& s, std::int64_t token) const noexcept {
    return reinterpret_cast<float*>(s.tables) + s.n_tokens * before + token * attributes.n_rot;
  }
};

/// Resolves a graph's names while steps are made.
struct compile_context {
  const graph::graph& g;
  const kernels::kernel_set& kernels;
  const cpu_weights& weights;
  std::vector<rope_table>& ropes;

  [[nodiscard]] operand value(graph::value v) const;
  /// f32 values of a weight; null for an invalid value.
  [[nodiscard]] const float* vector(graph::value v) const;
  /// The same of a matrix's transpose, for nodes that want it so (see weight_use).
  [[nodiscard]] const float* transposed(graph::value v) const;
  [[nodiscard]] const packed_weight& matrix(graph::value v) const;
  /// The table of a rotation, shared by all nodes that rotate alike.
  [[nodiscard]] rope_table rope(const graph::rope_attributes& attributes, graph::value factors,
                                graph::value long_factors) const;
};

std::unique_ptr<step> make_linear(const compile_context& c, const graph::node& n);
std::unique_ptr<step> make_attention(const compile_context& c, const graph::node& n);
std::unique_ptr<step> make_delta_net(const compile_context& c, const graph::node& n);
/// attention without `causal`
std::unique_ptr<step> make_bidirectional_attention(const compile_context& c, const graph::node& n);
std::unique_ptr<step> make_moe(const compile_context& c, const graph::node& n);
std::unique_ptr<step> make_tap(const compile_context& c, const graph::node& n);
/// embed, rms_norm, layer_norm, rope, glu, activate, add, scale, softcap, columns, select_outputs
std::unique_ptr<step> make_rowwise(const compile_context& c, const graph::node& n);
/// Fills all rotary tables; the first step of a program that has any.
std::unique_ptr<step> make_rope_tables(const std::vector<rope_table>& ropes);

class program final : public executable {
 public:
  static result<std::unique_ptr<const executable>> compile(const subgraph& part, const kernels::kernel_set& kernels,
                                                           std::shared_ptr<const device_weights> weights);
  [[nodiscard]] std::size_t scratch_bytes(std::int64_t max_tokens, std::int64_t max_outputs,
                                          unsigned workers) const override;
  [[nodiscard]] result<void> run(const bindings& b) const override;

 private:
  [[nodiscard]] std::size_t tables_bytes(std::int64_t tokens) const;
  [[nodiscard]] std::size_t shared_bytes(std::int64_t tokens, std::int64_t outputs) const;
  [[nodiscard]] std::size_t own_bytes(std::int64_t tokens, std::int64_t outputs) const;
  std::vector<std::unique_ptr<step>> steps_;
  std::int64_t table_floats_ = 0;  ///< Per token.
  std::shared_ptr<const device_weights> weights_;
};

}  // namespace flywheel::inline v0::device
