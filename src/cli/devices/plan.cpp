#include "flywheel/model/plan.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>

#include "cli/command.hpp"
#include "cli/devices/devices.hpp"
#include "cli/output.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

/// Operations that differ in their layer alone.
struct plan_row {
  const planned_operation* first = nullptr;
  std::set<std::int64_t> layers;
  std::int64_t count = 0;
};

/// "attn_q" of "blk.3.attn_q.weight".
std::string_view short_name(std::string_view name) {
  if (name.starts_with("blk.")) name.remove_prefix(std::min(name.find('.', 4), name.size() - 1) + 1);
  if (name.ends_with(".weight")) name.remove_suffix(7);
  return name;
}

/// The matrices of an operation; where it has none, what it has.
std::vector<const graph::weight_info*> main_weights(const planned_operation& o) {
  std::vector<const graph::weight_info*> matrices, all;
  for (const graph::weight_info& w : o.weights) {
    all.push_back(&w);
    if (w.dims.rank() > 1 && w.name.ends_with(".weight")) matrices.push_back(&w);
  }
  return matrices.empty() ? all : matrices;
}

/// "attn_q/k/v": what all of them begin with, up to a '_' or '.', is said once.
std::string joined(const std::vector<std::string>& names) {
  if (names.empty()) return {};
  std::size_t same = names.front().size();
  for (const std::string& name : names)
    same = std::min<std::size_t>(
        same,
        static_cast<std::size_t>(
            std::mismatch(name.begin(), name.end(), names.front().begin(), names.front().end()).first - name.begin()));
  const std::size_t cut = names.front().find_last_of("_.", same);
  same = cut == std::string::npos || cut >= same ? 0 : cut + 1;
  std::string text = names.front();
  for (std::size_t i = 1; i < names.size(); ++i) text += "/" + names[i].substr(same);
  return text;
}

template <class Each>
std::string distinct(const planned_operation& o, const char* separator, Each&& each) {
  std::vector<std::string> found;
  for (const graph::weight_info* w : main_weights(o))
    if (std::string text = each(*w); std::find(found.begin(), found.end(), text) == found.end())
      found.push_back(std::move(text));
  std::string out;
  for (const std::string& text : found) out += (out.empty() ? "" : separator) + text;
  return out;
}

std::string names_text(const planned_operation& o) {
  std::vector<std::string> names;
  for (const graph::weight_info* w : main_weights(o))
    if (const auto name = short_name(w->name); names.empty() || names.back() != name) names.emplace_back(name);
  return joined(names);
}

std::string types_text(const planned_operation& o) {
  return distinct(o, "/", [](const graph::weight_info& w) { return std::string(to_string(w.type)); });
}

/// "2560 x 2048": rows of all matrices together where they have the same columns.
std::string extents_text(const planned_operation& o) {
  const auto weights = main_weights(o);
  std::int64_t rows = 0;
  bool one = !weights.empty();
  for (const graph::weight_info* w : weights) {
    one = one && w->dims.rank() == 2 && w->dims[1] == weights.front()->dims[1];
    if (one) rows += w->dims[0];
  }
  if (one) return std::to_string(rows) + " x " + std::to_string(weights.front()->dims[1]);
  return distinct(o, ", ", [](const graph::weight_info& w) {
    std::string text;
    for (const std::int64_t extent : w.dims.dims()) text += (text.empty() ? "" : " x ") + std::to_string(extent);
    return text;
  });
}

/// "blk.0-3,5."
std::string layers_text(const std::set<std::int64_t>& layers) {
  std::string text;
  for (auto at = layers.begin(); at != layers.end();) {
    const std::int64_t first = *at;
    std::int64_t last = first;
    while (++at != layers.end() && *at == last + 1) ++last;
    text += (text.empty() ? "blk." : ",") + std::to_string(first) + (last > first ? "-" + std::to_string(last) : "");
  }
  return text;
}

std::string where_text(const plan_row& row) {
  const std::string layers = layers_text(row.layers), names = names_text(*row.first);
  return layers + (layers.empty() || names.empty() ? "" : ".") + names;
}

/// A name or a reason that is the same for all layers: "blk.*.attn_q.weight".
std::string without_layer(std::string text, std::int64_t layer) {
  const std::string own = "blk." + std::to_string(layer) + ".", any = "blk.*.";
  for (std::size_t at = 0; (at = text.find(own, at)) != std::string::npos; at += any.size())
    text.replace(at, own.size(), any);
  return text;
}

/// Equal for operations that differ in their layer alone.
std::string key_of(const planned_operation& o) {
  json weights = json::array(), refusals = json::array();
  for (const graph::weight_info& w : o.weights)
    weights.push_back(
        json::array({without_layer(w.name, o.layer), to_string(w.type), w.dims.to_string(), w.first_row}));
  for (const std::string& reason : o.refusals) refusals.push_back(without_layer(reason, o.layer));
  return dump(json::array({graph::to_string(o.kind), o.layer < 0, o.device, std::move(weights), std::move(refusals),
                           o.multiply_adds, o.attention_multiply_adds, o.seconds}));
}

std::vector<plan_row> fold(const device_plan& plan, bool all) {
  std::vector<plan_row> rows;
  std::map<std::string, std::size_t> known;
  for (const planned_operation& o : plan.operations) {
    const auto [at, fresh] = known.try_emplace(all ? std::to_string(rows.size()) : key_of(o), rows.size());
    if (fresh) rows.push_back({&o, {}, 0});
    plan_row& row = rows[at->second];
    if (o.layer >= 0) row.layers.insert(o.layer);
    ++row.count;
  }
  return rows;
}

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string percent(std::int64_t part, std::int64_t whole) { return decimal(100 * share(part, whole), 1) + "%"; }

std::string millions(std::int64_t value) {
  return value == 0 ? "" : decimal(static_cast<double>(value) / 1e6, value < 10'000'000 ? 3 : 1);
}

/// Reasons of refusals, numbered in the order of their first appearance.
class footnotes {
 public:
  explicit footnotes(const device_plan& plan) : plan_(plan) {}
  /// "1,2": the numbers of an operation's reasons, which stand for `count` operations.
  std::string of(const planned_operation& o, std::int64_t count) {
    std::string text;
    for (std::size_t d = 0; d < o.refusals.size(); ++d) {
      const std::string line = plan_.devices[d].name + ": " + without_layer(o.refusals[d], o.layer);
      const auto found = std::find_if(notes_.begin(), notes_.end(), [&](const note& n) { return n.text == line; });
      const auto index = static_cast<std::size_t>(found - notes_.begin());
      if (found == notes_.end()) notes_.push_back({line, 0});
      notes_[index].operations += count;
      text += (text.empty() ? "" : ",") + std::to_string(index + 1);
    }
    return text;
  }
  [[nodiscard]] std::string text() const {
    table rows({{"", table::align::right}, {"operations", table::align::right}, {"why not"}});
    for (std::size_t i = 0; i < notes_.size(); ++i)
      rows.row({std::to_string(i + 1), grouped(notes_[i].operations), notes_[i].text});
    return rows.empty() ? std::string() : "\n" + rows.text();
  }

 private:
  struct note {
    std::string text;
    std::int64_t operations = 0;
  };
  const device_plan& plan_;
  std::vector<note> notes_;
};

std::string predicted_text(const planned_device& d) {
  if (d.predicted == 0) return d.operations == 0 ? "" : "not predicted";
  return short_time(d.seconds) + (d.predicted < 1 ? " for " + decimal(100 * d.predicted, 1) + "%" : std::string());
}

std::string operations_table(const device_plan& plan, const device_plan_args& args) {
  const auto right = table::align::right;
  table rows({{"operation"},
              {"n", right},
              {"weights"},
              {"type"},
              {"extents"},
              {"device"},
              {"M multiply-adds", right},
              {"share", right},
              {"bytes", right},
              {"predicted", right},
              {"why not"}});
  footnotes notes(plan);
  for (const plan_row& row : fold(plan, args.all)) {
    const planned_operation& o = *row.first;
    const std::int64_t work = o.multiply_adds * row.count;
    rows.row({std::string(graph::to_string(o.kind)), std::to_string(row.count), where_text(row), types_text(o),
              extents_text(o), plan.devices[o.device].name, millions(work),
              work == 0 ? "" : percent(work, plan.multiply_adds()),
              o.weight_bytes == 0 ? "" : human_bytes(o.weight_bytes * static_cast<std::uint64_t>(row.count)),
              o.seconds == 0 ? "" : short_time(o.seconds * static_cast<double>(row.count)), notes.of(o, row.count)});
  }
  return rows.text() + notes.text();
}

std::string devices_table(const device_plan& plan) {
  const auto right = table::align::right;
  table rows({{"device"},
              {"operations", right},
              {"parts", right},
              {"M multiply-adds", right},
              {"share", right},
              {"weights", right},
              {"predicted per token", right}});
  for (const planned_device& d : plan.devices)
    rows.row({d.name, std::to_string(d.operations), std::to_string(d.parts), millions(d.multiply_adds),
              percent(d.multiply_adds, plan.multiply_adds()), human_bytes(d.weight_bytes), predicted_text(d)});
  return rows.text();
}

std::int64_t attention_work(const device_plan& plan) {
  std::int64_t sum = 0;
  for (const planned_operation& o : plan.operations) sum += o.attention_multiply_adds;
  return sum;
}

std::string summary(const device_plan& plan) {
  std::string text;
  for (const planned_device& d : plan.devices)
    text += (text.empty() ? "" : ", ") + d.name + " " + percent(d.multiply_adds, plan.multiply_adds());
  return text + " of " + millions(plan.multiply_adds()) + " M multiply-adds per token; " +
         grouped(static_cast<std::int64_t>(plan.parts)) + (plan.parts == 1 ? " part, " : " parts, ") +
         grouped(static_cast<std::int64_t>(plan.transfers)) + " transfers of " + human_bytes(plan.transfer_bytes) +
         " in all per token";
}

void print_plan(const device_plan& plan, const device_plan_args& args) {
  print_line(bold(printable(std::filesystem::path(args.model.path).filename().string())) + ", " +
             printable(plan.architecture) + ": one decoded token");
  print("\n" + operations_table(plan, args) + "\n" + devices_table(plan) + "\n");
  if (const std::int64_t work = attention_work(plan); work > 0 && args.positions > 0)
    print_line("Attention over " + grouped(args.positions) + " positions: " + millions(work) +
               " M multiply-adds more.");
  print_line(summary(plan));
}

json operation_json(const device_plan& plan, const planned_operation& o) {
  json weights = json::array(), refusals = json::array();
  for (const graph::weight_info& w : o.weights)
    weights.push_back({{"name", w.name}, {"type", to_string(w.type)}, {"shape", w.dims.dims()}});
  for (std::size_t d = 0; d < o.refusals.size(); ++d)
    refusals.push_back({{"device", plan.devices[d].name}, {"reason", o.refusals[d]}});
  return {{"operation", graph::to_string(o.kind)},
          {"layer", o.layer < 0 ? json() : json(o.layer)},
          {"weights", std::move(weights)},
          {"device", plan.devices[o.device].name},
          {"part", o.part},
          {"refusals", std::move(refusals)},
          {"multiply_adds", o.multiply_adds},
          {"attention_multiply_adds", o.attention_multiply_adds},
          {"weight_bytes", o.weight_bytes},
          {"read_bytes", o.read_bytes},
          {"seconds", o.seconds > 0 ? json(o.seconds) : json()}};
}

json plan_json(const device_plan& plan, const device_plan_args& args) {
  json devices = json::array(), operations = json::array();
  for (const planned_device& d : plan.devices)
    devices.push_back({{"name", d.name},
                       {"operations", d.operations},
                       {"parts", d.parts},
                       {"multiply_adds", d.multiply_adds},
                       {"share", share(d.multiply_adds, plan.multiply_adds())},
                       {"weight_bytes", d.weight_bytes},
                       {"seconds", d.predicted > 0 ? json(d.seconds) : json()},
                       {"predicted_share", d.predicted}});
  for (const planned_operation& o : plan.operations) operations.push_back(operation_json(plan, o));
  return {{"model", args.model.path},
          {"architecture", plan.architecture},
          {"devices", std::move(devices)},
          {"operations", std::move(operations)},
          {"parts", plan.parts},
          {"multiply_adds", plan.multiply_adds()},
          {"attention", {{"positions", args.positions}, {"multiply_adds", attention_work(plan)}}},
          {"transfers", {{"count", plan.transfers}, {"bytes", plan.transfer_bytes}}}};
}

}  // namespace

int plan_devices(const device_plan_args& args) {
  plan_options options;
  options.context = args.model.make_context();
  options.positions = args.positions;
  const used_devices devices(args.model.devices, options.context);
  const io::archive file = open_model_archive(args.model.path).value();
  const device_plan made = plan(file, devices.list(), options).value();
  if (args.json)
    print_line(dump(plan_json(made, args)));
  else
    print_plan(made, args);
  return success;
}

}  // namespace flywheel::cli
