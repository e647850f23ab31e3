#include "flywheel/model/plan.hpp"

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/graph/work.hpp"
#include "src/model/architecture.hpp"
#include "src/model/model_state.hpp"

namespace flywheel::inline v0 {
namespace {

using device_list = std::span<const std::shared_ptr<const device::device>>;

/// 3 of "blk.3.attn_q.weight"; -1 of names that belong to no layer.
std::int64_t layer_of_name(std::string_view name) {
  constexpr std::string_view prefix = "blk.";
  if (!name.starts_with(prefix)) return -1;
  std::int64_t layer = -1;
  const char* end = name.data() + name.size();
  const auto [stop, failed] = std::from_chars(name.data() + prefix.size(), end, layer);
  return failed == std::errc() && stop != end && *stop == '.' ? layer : -1;
}

std::int64_t layer_of(const graph::node& n, const std::vector<graph::weight_info>& weights) {
  if (n.kind == graph::op::attention && n.as<graph::attention_attributes>().causal)
    return n.as<graph::attention_attributes>().layer;
  if (n.kind == graph::op::delta_net) return n.as<graph::delta_net_attributes>().layer;
  for (const graph::weight_info& w : weights)
    if (const std::int64_t layer = layer_of_name(w.name); layer >= 0) return layer;
  return -1;
}

std::int64_t attention_multiply_adds(const graph::node& n, std::int64_t positions) {
  if (n.kind != graph::op::attention) return 0;
  const auto& a = n.as<graph::attention_attributes>();
  const std::int64_t seen = a.window > 0 ? std::min(a.window, positions) : positions;
  return 2 * a.n_heads * a.head_dim * seen;
}

/// Bytes of a weight that one row of the node's input reads.
std::uint64_t read_bytes(const graph::node& n, const graph::weight_info& w, std::uint64_t all) {
  if (n.kind == graph::op::embed) return row_bytes(w.type, w.dims.cols());
  if (n.kind != graph::op::moe_ffn) return all;
  const auto& a = n.as<graph::moe_attributes>();
  const bool each_expert = w.dims.rank() > 1 && w.dims[0] == a.n_expert;
  return each_expert ? all / static_cast<std::uint64_t>(a.n_expert) * static_cast<std::uint64_t>(a.n_used) : all;
}

result<planned_operation> describe(const graph::graph& g, const graph::node& n, device::placed_node& placed,
                                   std::int64_t positions) {
  planned_operation out;
  out.kind = n.kind;
  for (const graph::value v : n.inputs) {
    const graph::weight_info* w = g.weight_of(v);
    if (w == nullptr) continue;
    FLYWHEEL_TRY(const std::size_t bytes, dense_bytes(w->type, w->dims));
    out.weight_bytes += bytes;
    out.read_bytes += read_bytes(n, *w, bytes);
    out.weights.push_back(*w);
  }
  out.layer = layer_of(n, out.weights);
  out.device = placed.device;
  out.refusals = std::move(placed.refusals);
  out.multiply_adds = graph::multiply_adds(g, n);
  out.attention_multiply_adds = attention_multiply_adds(n, positions);
  out.seconds = placed.answer.seconds;
  return out;
}

result<void> add_operations(const graph::graph& g, device::placement& placed, std::int64_t positions,
                            device_plan& out) {
  for (std::size_t part = 0; part < placed.parts.size(); ++part)
    for (const std::uint32_t i : placed.parts[part].part.nodes) {
      FLYWHEEL_TRY(planned_operation made, describe(g, g.nodes[i], placed.nodes[i], positions));
      made.part = part;
      out.operations.push_back(std::move(made));
    }
  out.parts = placed.parts.size();
  return {};
}

result<void> add_totals(device_plan& out, const std::vector<device::placed_part>& parts) {
  for (const device::placed_part& p : parts) ++out.devices[p.device].parts;
  std::set<std::pair<std::size_t, std::pair<std::string, std::int64_t>>> held;  // by which device, which rows
  std::vector<std::int64_t> timed(out.devices.size());
  for (const planned_operation& o : out.operations) {
    planned_device& d = out.devices[o.device];
    ++d.operations;
    d.multiply_adds += o.multiply_adds;
    d.seconds += o.seconds;
    if (o.seconds > 0) timed[o.device] += o.multiply_adds;
    for (const graph::weight_info& w : o.weights) {
      if (!held.insert({o.device, {w.name, w.first_row}}).second) continue;
      FLYWHEEL_TRY(const std::size_t bytes, dense_bytes(w.type, w.dims));
      d.weight_bytes += bytes;
    }
  }
  for (std::size_t i = 0; i < timed.size(); ++i) {
    planned_device& d = out.devices[i];
    if (d.multiply_adds > 0) d.predicted = static_cast<double>(timed[i]) / static_cast<double>(d.multiply_adds);
  }
  return {};
}

void add_transfers(const graph::graph& g, const device::placement& placed, device_plan& out) {
  std::set<std::pair<std::uint32_t, std::size_t>> seen;  // which value, to which device
  const auto use = [&](graph::value v, std::size_t device) {
    if (!v.valid()) return;
    const std::uint32_t producer = g.at(v).producer;
    if (graph::is_source(g.nodes[producer].kind) || placed.nodes[producer].device == device) return;
    if (!seen.insert({v.index, device}).second) return;
    ++out.transfers;
    out.transfer_bytes += row_bytes(g.at(v).type, g.at(v).cols);
  };
  for (std::size_t i = 0; i < g.nodes.size(); ++i)
    for (const graph::value v : g.nodes[i].inputs) use(v, placed.nodes[i].device);
  for (const graph::value v : g.outputs) use(v, out.devices.size() - 1);
}

result<device_plan> make_plan(const io::archive& file, device_list devices, const plan_options& options) {
  context ctx = options.context;
  if (!ctx) {
    context_options one;
    one.threads = 1;  // nothing is computed
    FLYWHEEL_TRY(ctx, context::create(std::move(one)));
  }
  FLYWHEEL_TRY(const auto cpu, device::make_cpu_device(ctx.isa().selected, ctx.activations()));
  std::vector<const device::device*> all;
  for (const auto& d : devices) all.push_back(d.get());
  all.push_back(cpu.get());

  device_plan out;
  for (const device::device* d : all) out.devices.emplace_back().name = d->caps().name;
  FLYWHEEL_TRY(const detail::architecture* arch, detail::architecture_of(file.metadata()));
  FLYWHEEL_TRY(const detail::hyperparameters h, detail::read_hyperparameters(file));
  out.architecture = h.architecture;
  FLYWHEEL_TRY(const graph::graph g, detail::build_graph(*arch, file, h, detail::graph_output::logits));
  FLYWHEEL_TRY(device::placement placed, device::partition(g, all));
  add_transfers(g, placed, out);
  FLYWHEEL_CHECK(add_operations(g, placed, options.positions, out));
  FLYWHEEL_CHECK(add_totals(out, placed.parts));
  return out;
}

}  // namespace

std::int64_t device_plan::multiply_adds() const noexcept {
  std::int64_t sum = 0;
  for (const planned_device& d : devices) sum += d.multiply_adds;
  return sum;
}

result<device_plan> plan(const io::archive& file, device_list devices, const plan_options& options) {
  return detail::guarded([&]() -> result<device_plan> {
    if (options.positions < 0) return error{errc::invalid_argument, "must not be negative", "positions"};
    for (std::size_t i = 0; i < devices.size(); ++i)
      if (devices[i] == nullptr)
        return error{errc::invalid_argument, "device " + std::to_string(i) + " is null", "devices"};
    auto made = make_plan(file, devices, options);
    if (!made) return detail::in_file(std::move(made).error(), file);
    return made;
  });
}

}  // namespace flywheel::inline v0
