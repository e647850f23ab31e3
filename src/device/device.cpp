#include "flywheel/device/device.hpp"

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {

device_weights::~device_weights() = default;
executable::~executable() = default;
device::~device() = default;

result<std::vector<placed_part>> partition(const graph::graph& g, std::span<const device* const> devices) {
  return detail::guarded([&]() -> result<std::vector<placed_part>> {
    std::vector<placed_part> parts;
    for (std::size_t i = 0; i < g.nodes.size(); ++i) {
      const graph::node& n = g.nodes[i];
      if (graph::is_source(n.kind)) continue;
      std::size_t chosen = devices.size();
      std::string reasons;
      for (std::size_t d = 0; d < devices.size() && chosen == devices.size(); ++d) {
        support answer = devices[d]->query(g, n);
        if (answer.ok)
          chosen = d;
        else
          reasons += (reasons.empty() ? "" : "; ") + devices[d]->caps().name + ": " + answer.reason;
      }
      if (chosen == devices.size())
        return error{errc::unsupported,
                     "no device supports the operation (" + (reasons.empty() ? "no device given" : reasons) + ")",
                     std::string(graph::to_string(n.kind))};
      if (parts.empty() || parts.back().device != chosen) parts.push_back({chosen, {&g, {}}});
      parts.back().part.nodes.push_back(static_cast<std::uint32_t>(i));
    }
    return parts;
  });
}

}  // namespace flywheel::inline v0::device
