// A model's graphs on its devices: who runs which part, with which weights, and who goes on when a device is lost.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/graph/graph.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::detail {

/// Several graphs of one model. Immutable to its users: run() may be called from any thread at any time. The last
/// device takes everything (the CPU), and is never lost.
class placed_graphs {
 public:
  placed_graphs() = default;
  placed_graphs(const placed_graphs&) = delete;
  placed_graphs& operator=(const placed_graphs&) = delete;

  /// Takes optimized, valid graphs, and cuts them. Errors: those of device::partition.
  result<void> place(const context& ctx, std::vector<std::shared_ptr<const device::device>> devices,
                     std::vector<graph::graph> graphs);
  /// Loads all weights and compiles all parts. A device that fails at that is taken for lost; the others do its work.
  result<void> load(const io::archive& file, const control& control);
  /// The sizes that load() leads to, without reading tensor data. What is measured must not run.
  result<void> measure(const io::archive& file);

  [[nodiscard]] const graph::graph& at(std::size_t i) const noexcept { return graphs_[i]->whole; }
  /// Of all devices that are in use.
  [[nodiscard]] std::size_t weight_bytes() const;
  /// Whether the last device, the CPU, was given everything.
  [[nodiscard]] bool on_last_device() const;
  /// Of any part on any device that may have to run it.
  [[nodiscard]] std::size_t scratch_bytes(std::int64_t max_tokens) const;

  /// Runs all parts of a graph. Errors: cancelled; those of loading weights again for another device, after one was
  /// lost: the next run then tries that again.
  [[nodiscard]] result<void> run(std::size_t graph, const device::bindings& b) const;

 private:
  using executable_ptr = std::unique_ptr<const device::executable>;
  using weights_ptr = std::shared_ptr<const device::device_weights>;
  /// A part and who runs it. Everything but `current` is under mutex_.
  struct seat {
    device::subgraph part;
    std::size_t device = 0;
    bool seated = false;  ///< `executable` is of `device`; else it is of a lost one, or null.
    executable_ptr executable;
    std::atomic<const device::executable*> current{nullptr};  ///< `executable`, for runs.
    /// Devices that may have to take over, with executables for their sizes alone.
    std::vector<std::pair<std::size_t, executable_ptr>> successors;
  };
  struct placed_graph {
    graph::graph whole;  ///< Never moves: parts point at it.
    std::vector<std::unique_ptr<seat>> seats;
  };
  /// What runs may still use although its device is lost.
  struct retired {
    std::vector<executable_ptr> executables;
    std::vector<weights_ptr> weights;
  };
  class running;

  template <class Body>
  result<void> for_each_seat(Body&& body) const;
  [[nodiscard]] bool takes(std::size_t device, const seat& s) const;
  [[nodiscard]] std::vector<device::subgraph> unseated_parts(std::size_t device) const;
  result<void> measure_successors(const io::archive& file);
  result<void> seat_parts(std::size_t device, weights_ptr weights) const;
  result<void> seat_all(const control& control, std::vector<std::string>& said) const;
  void lose(std::size_t device, const error& why, std::vector<std::string>& said) const;
  result<void> replace(const seat& failed, const device::executable* tried, const error& why) const;

  context ctx_;
  io::archive file_;
  std::vector<std::shared_ptr<const device::device>> devices_;
  std::vector<std::unique_ptr<placed_graph>> graphs_;
  mutable std::mutex mutex_;
  mutable std::vector<bool> lost_;                         ///< [device], under mutex_.
  mutable std::vector<std::vector<weights_ptr>> weights_;  ///< [device], under mutex_.
  mutable retired retired_;                                ///< Under mutex_.
  mutable std::atomic<bool> any_retired_{false};
  mutable std::atomic<std::size_t> running_{0};  ///< Calls of run() that are under way.
};

}  // namespace flywheel::inline v0::detail
