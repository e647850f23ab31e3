#include "flywheel/device/device.hpp"

#include "flywheel/device/observer.hpp"

#include "flywheel/detail/try.hpp"
#include "flywheel/graph/work.hpp"

namespace flywheel::inline v0::device {
namespace {

error nobody(const graph::graph& g, std::size_t node, std::span<const device* const> devices,
             const placed_node& placed) {
  std::string reasons;
  for (std::size_t d = 0; d < placed.refusals.size(); ++d)
    reasons += (d == 0 ? "" : "; ") + devices[d]->caps().name + ": " + placed.refusals[d];
  return {errc::unsupported,
          "no device supports the operation (" + (reasons.empty() ? "no device given" : reasons) + ")",
          std::string(graph::to_string(g.nodes[node].kind))};
}

/// Moves the node on to the first device from placed.device on that takes it; false: there is none.
bool place(const graph::graph& g, const graph::node& n, std::span<const device* const> devices, placed_node& placed) {
  for (; placed.device < devices.size(); ++placed.device) {
    placed.answer = devices[placed.device]->query(g, n);
    if (placed.answer.ok) return true;
    placed.refusals.push_back(placed.answer.reason);
  }
  return false;
}

std::vector<placed_part> cut(const graph::graph& g, const std::vector<placed_node>& nodes) {
  std::vector<placed_part> parts;
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    if (graph::is_source(g.nodes[i].kind)) continue;
    if (parts.empty() || parts.back().device != nodes[i].device) parts.push_back({nodes[i].device, {&g, {}}});
    parts.back().part.nodes.push_back(static_cast<std::uint32_t>(i));
  }
  return parts;
}

}  // namespace

std::vector<std::pair<const graph::graph*, std::uint32_t>> nodes_of(std::span<const subgraph> parts) {
  std::vector<std::pair<const graph::graph*, std::uint32_t>> all;
  for (const subgraph& p : parts)
    for (const std::uint32_t node : p.nodes) all.emplace_back(p.whole, node);
  return all;
}

device_weights::~device_weights() = default;
observer::~observer() = default;
executable::~executable() = default;
device::~device() = default;

result<placement> partition(const graph::graph& g, std::span<const device* const> devices) {
  return detail::guarded([&]() -> result<placement> {
    placement out;
    out.nodes.resize(g.nodes.size());
    for (std::size_t i = 0; i < g.nodes.size(); ++i)
      if (!graph::is_source(g.nodes[i].kind) && !place(g, g.nodes[i], devices, out.nodes[i]))
        return nobody(g, i, devices, out.nodes[i]);
    // Moving one part changes its neighbours: begin again until all are large enough. Nodes only ever move on, so this
    // ends; the last device keeps what it has.
    for (bool moved = true; moved;) {
      moved = false;
      out.parts = cut(g, out.nodes);
      for (const placed_part& p : out.parts) {
        const std::int64_t least = devices[p.device]->caps().min_multiply_adds;
        std::int64_t work = 0;
        for (std::uint32_t i : p.part.nodes) work += graph::multiply_adds(g, g.nodes[i]);
        if (work >= least || p.device + 1 == devices.size()) continue;
        for (std::uint32_t i : p.part.nodes) {
          placed_node& placed = out.nodes[i];
          placed.refusals.push_back("too little work: " + std::to_string(work) + " multiply-adds per row, fewer than " +
                                    std::to_string(least));
          ++placed.device;
          if (!place(g, g.nodes[i], devices, placed)) return nobody(g, i, devices, placed);
        }
        moved = true;
        break;
      }
    }
    return out;
  });
}

}  // namespace flywheel::inline v0::device
