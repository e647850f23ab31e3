#include "src/model/graph_engine.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/device/observer.hpp"
#include "flywheel/graph/plan.hpp"
#include "src/model/kv_cache.hpp"
#include "src/model/placed_graphs.hpp"

namespace flywheel::inline v0::detail {
namespace {

constexpr std::size_t graph_kinds = 2;  // graph_output::logits, graph_output::hidden
constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// The arena of one session: a plan per graph, and memory for the larger of them.
class graph_workspace final : public workspace {
 public:
  [[nodiscard]] std::size_t bytes() const noexcept override { return memory.size() + projections.size(); }

  std::array<graph::memory_plan, graph_kinds> plans;
  std::size_t scratch_offset = 0;
  std::int32_t n_batch = 0;
  std::vector<device::sequence_slice> sequences;  ///< Filled for each chunk.
  std::vector<device::adapter_segment> adapted_tokens, adapted_outputs;
  buffer memory;
  buffer projections;  ///< [n_batch, width]
  std::int64_t width = 0;
  std::pmr::memory_resource* resource = nullptr;

  [[nodiscard]] result<void> fit(std::int64_t adapter_width) override {
    if (adapter_width <= width) return {};
    FLYWHEEL_TRY(projections,
                 buffer::allocate(static_cast<std::size_t>(n_batch * adapter_width) * sizeof(float), resource));
    width = adapter_width;
    return {};
  }
  /// Finds the rows of neighbours with equal adapters.
  result<void> segment(const chunk& c);
};

result<void> graph_workspace::segment(const chunk& c) {
  adapted_tokens.clear();
  adapted_outputs.clear();
  std::int64_t row = 0;
  for (const chunk_part& p : c.parts) {
    const std::int64_t begin = std::exchange(row, row + p.n_tokens);
    if (p.adapters.empty()) continue;
    std::int64_t needed = 0;
    for (const device::adapter_share& s : p.adapters) needed += s.weights->width;
    if (needed > width) return error{errc::internal, "the workspace has no room for the adapters", "forward"};
    if (!adapted_tokens.empty() && adapted_tokens.back().end == begin &&
        std::ranges::equal(adapted_tokens.back().shares, p.adapters))
      adapted_tokens.back().end = row;
    else
      adapted_tokens.push_back({begin, row, p.adapters});
  }
  std::size_t out = 0;
  for (const device::adapter_segment& s : adapted_tokens) {
    while (out < c.output_rows.size() && c.output_rows[out] < s.begin) ++out;
    const std::size_t first = out;
    while (out < c.output_rows.size() && c.output_rows[out] < s.end) ++out;
    if (first < out)
      adapted_outputs.push_back({static_cast<std::int64_t>(first), static_cast<std::int64_t>(out), s.shares});
  }
  return {};
}

/// Plans for n_batch tokens; everything but the memory itself.
result<std::unique_ptr<graph_workspace>> plan_workspace(const placed_graphs& graphs, std::int32_t n_batch) {
  auto w = std::make_unique<graph_workspace>();
  std::size_t arena = 0;
  for (std::size_t i = 0; i < graph_kinds; ++i) {
    FLYWHEEL_TRY(w->plans[i], graph::plan_memory(graphs.at(i), n_batch, n_batch));
    arena = std::max(arena, w->plans[i].arena_bytes);
  }
  w->scratch_offset = aligned(arena);
  w->n_batch = n_batch;
  return w;
}

/// FNV-1a over what identifies a model: its metadata and its table of tensors.
class digester {
 public:
  void add(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < size; ++i) state_ = (state_ ^ bytes[i]) * 0x100000001b3ULL;
  }
  void add(std::string_view text) {
    add_number(text.size());
    add(text.data(), text.size());
  }
  void add_number(std::uint64_t n) { add(&n, sizeof n); }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325ULL;
};

std::uint64_t digest_of(const io::archive& file) {
  digester d;
  for (const io::entry& e : file.metadata().entries()) {
    d.add(e.key);
    d.add_number(e.value.index());
    std::visit(
        [&](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_arithmetic_v<T>)
            d.add(&v, sizeof v);
          else if constexpr (std::is_same_v<T, std::string>)
            d.add(v);
          else
            d.add_number(
                v.size());  // vocabularies of equal length and tensors of equal shape: the offsets tell them apart
        },
        e.value);
  }
  for (const io::tensor_info& t : file.tensors()) {
    d.add(t.name);
    d.add_number(static_cast<std::uint64_t>(t.type));
    d.add_number(t.offset);
    for (std::int64_t extent : t.dims.dims()) d.add_number(static_cast<std::uint64_t>(extent));
  }
  return d.value();
}

/// Nothing for a graph whose attention is causal.
std::optional<encoder_facts> encoder_facts_of(const io::archive& file, const graph::graph& g) {
  std::optional<encoder_facts> facts;
  for (const graph::node& n : g.nodes)
    if (n.kind == graph::op::attention && !n.as<graph::attention_attributes>().causal) facts.emplace();
  if (!facts) return facts;
  for (const graph::node& n : g.nodes) {
    if (n.kind != graph::op::embed) continue;
    const auto rows = static_cast<std::int32_t>(std::min<std::int64_t>(g.weight_of(n.inputs[0])->dims[0], 0x7fffffff));
    const graph::op by = g.nodes[g.at(n.inputs[1]).producer].kind;
    if (by == graph::op::positions) facts->max_positions = rows;
    if (by == graph::op::token_types) facts->token_types = rows;
  }
  if (file.find("cls.output.weight")) facts->n_scores = static_cast<std::int32_t>(g.at(g.outputs[0]).cols);
  return facts;
}

/// Asks the observer what it wants to see of the graphs of one model.
std::vector<graph::graph> with_taps(std::vector<graph::graph> graphs, device::observer& observer) {
  std::vector<graph::tap_point> points;
  for (const graph::graph& g : graphs) graph::find_tap_points(g, points);
  observer.begin(points);
  std::vector<bool> wanted;
  for (const graph::tap_point& p : points) wanted.push_back(observer.wants(p));
  for (graph::graph& g : graphs) g = graph::insert_taps(std::move(g), points, wanted);
  return graphs;
}

/// Gives every weight of the graphs its slot.
adapter_sites number_weights(std::vector<graph::graph>& graphs) {
  adapter_sites sites;
  std::map<std::tuple<std::string, std::int64_t, std::int64_t>, std::uint32_t> slots;
  for (graph::graph& g : graphs) {
    for (graph::weight_info& w : g.weights) {
      const std::int64_t cols = w.dims.cols(), rows = w.dims.elements() / std::max<std::int64_t>(1, cols);
      w.slot = static_cast<std::uint32_t>(sites.weights.size());
      const auto [at, fresh] = slots.emplace(std::tuple(w.name, w.first_row, w.dims.elements()), w.slot);
      w.slot = at->second;
      if (fresh) sites.weights.push_back({w.name, w.first_row, rows, cols});
    }
    for (const graph::node& n : g.nodes) {
      std::vector<std::uint32_t> together;
      for (std::size_t i = 0; i < n.inputs.size(); ++i) {
        const graph::weight_info* w = g.weight_of(n.inputs[i]);
        if (w == nullptr) continue;
        weight_site& site = sites.weights[w->slot];
        const bool product = n.kind == graph::op::linear && i >= 1 && i <= n.as<graph::linear_attributes>().weights;
        const bool table =
            n.kind == graph::op::embed && g.nodes[g.at(n.inputs[1]).producer].kind == graph::op::token_ids;
        (product ? site.product : table ? site.table : site.other) = true;
        if (product || table) together.push_back(w->slot);
      }
      if (!together.empty()) sites.together.push_back(std::move(together));
    }
  }
  return sites;
}

class graph_engine final : public engine {
 public:
  /// Everything that needs no tensor data.
  result<void> build(const io::archive& file, const context& ctx,
                     std::vector<std::shared_ptr<const device::device>> devices,
                     std::shared_ptr<device::observer> observer) {
    ctx_ = ctx;
    observer_ = std::move(observer);
    FLYWHEEL_TRY(const architecture* arch, architecture_of(file.metadata()));
    FLYWHEEL_TRY(parameters_, read_hyperparameters(file));
    FLYWHEEL_TRY(auto cpu, device::make_cpu_device(ctx.isa().selected, ctx.activations()));
    devices.push_back(std::move(cpu));
    std::vector<graph::graph> graphs;
    for (std::size_t i = 0; i < graph_kinds; ++i) {
      FLYWHEEL_TRY(graph::graph g, arch->build(file, parameters_, static_cast<graph_output>(i)));
      graphs.push_back(std::move(g));
    }
    if (observer_) graphs = with_taps(std::move(graphs), *observer_);
    for (graph::graph& g : graphs) {
      FLYWHEEL_TRY(g, optimized(std::move(g)));
    }
    sites_ = number_weights(graphs);
    FLYWHEEL_CHECK(graphs_.place(ctx, std::move(devices), std::move(graphs)));
    sites_.elsewhere = !graphs_.on_last_device();
    encoder_ = encoder_facts_of(file, graphs_.at(0));
    FLYWHEEL_TRY(kv_, layout_of(graphs_.at(0)));
    digest_ = digest_of(file);
    return {};
  }

  result<void> load(const io::archive& file, const control& control) { return graphs_.load(file, control); }
  result<void> measure(const io::archive& file) { return graphs_.measure(file); }

  [[nodiscard]] const hyperparameters& parameters() const { return parameters_; }
  [[nodiscard]] std::size_t weight_bytes() const { return graphs_.weight_bytes(); }

  const kv_layout& kv() const override { return kv_; }
  std::int32_t n_vocab() const override { return static_cast<std::int32_t>(parameters_.n_vocab); }
  std::int32_t n_embd() const override { return static_cast<std::int32_t>(parameters_.n_embd); }
  std::int32_t n_ctx_train() const override {
    return static_cast<std::int32_t>(std::min<std::int64_t>(parameters_.n_ctx_train, 0x7fffffff));
  }
  std::optional<encoder_facts> encoder() const override { return encoder_; }
  const adapter_sites* sites() const override { return &sites_; }
  std::uint64_t digest() const override { return digest_; }

  result<std::unique_ptr<workspace>> new_workspace(std::int32_t n_batch) const override {
    return guarded([&]() -> result<std::unique_ptr<workspace>> {
      FLYWHEEL_TRY(auto w, plan_workspace(graphs_, n_batch));
      w->sequences.reserve(static_cast<std::size_t>(n_batch));
      w->adapted_tokens.reserve(static_cast<std::size_t>(n_batch));
      w->adapted_outputs.reserve(static_cast<std::size_t>(n_batch));
      w->resource = ctx_.memory();
      FLYWHEEL_TRY(w->memory, buffer::allocate(w->scratch_offset + graphs_.scratch_bytes(n_batch), ctx_.memory()));
      return std::unique_ptr<workspace>(std::move(w));
    });
  }

  std::size_t workspace_bytes(std::int32_t n_batch) const override {
    const auto bytes = guarded([&]() -> result<std::size_t> {
      FLYWHEEL_TRY(const auto w, plan_workspace(graphs_, n_batch));
      return w->scratch_offset + graphs_.scratch_bytes(n_batch);
    });
    return bytes ? *bytes : 0;
  }

  result<void> forward(const chunk& c, workspace& space, std::span<float> out) const override {
    auto& w = static_cast<graph_workspace&>(space);
    if (c.ids.empty() || c.ids.size() > static_cast<std::size_t>(w.n_batch))
      return error{errc::invalid_argument, "a chunk holds between 1 and " + std::to_string(w.n_batch) + " tokens",
                   "forward"};
    const std::size_t kind = c.hidden ? 1 : 0;
    const graph::graph& g = graphs_.at(kind);
    if (out.size() < c.output_rows.size() * static_cast<std::size_t>(g.at(g.outputs[0]).cols))
      return error{errc::invalid_argument, "the memory for the results is too small", "forward"};
    w.sequences.clear();
    for (const chunk_part& p : c.parts) {
      device::sequence_slice slice;
      slice.n_tokens = p.n_tokens;
      slice.n_ctx = p.n_ctx;
      if (p.cache != nullptr) {
        slice.first_position = p.cache->size();
        slice.pages = p.cache->pages();
        slice.state = p.cache->states();
        slice.next_state = p.cache->next_states();
      }
      w.sequences.push_back(slice);
    }
    FLYWHEEL_CHECK(w.segment(c));

    float* const results[] = {out.data()};
    device::bindings b;
    b.ids = c.ids;
    b.token_types = c.token_types;
    b.sequences = w.sequences;
    b.output_rows = c.output_rows;
    if (!encoder_) b.kv_type = c.parts.front().cache->kv_type();
    b.adapters = {w.adapted_tokens, w.adapted_outputs, reinterpret_cast<float*>(w.projections.mutable_data()), w.width};
    b.arena = w.memory.mutable_data();
    b.offsets = w.plans[kind].offsets;
    b.results = results;
    b.scratch = b.arena + w.scratch_offset;
    b.executor = &ctx_.executor();
    b.stop = c.stop;
    b.observer = observer_.get();
    return graphs_.run(kind, b);
  }

 private:
  context ctx_;
  std::shared_ptr<device::observer> observer_;
  hyperparameters parameters_;
  std::optional<encoder_facts> encoder_;
  std::uint64_t digest_ = 0;
  kv_layout kv_;
  adapter_sites sites_;
  placed_graphs graphs_;
};

}  // namespace

namespace {
template <class Fill>
result<loaded_engine> make_engine(const io::archive& file, const context& ctx,
                                  std::vector<std::shared_ptr<const device::device>> devices,
                                  std::shared_ptr<device::observer> observer, Fill&& fill) {
  auto made = std::make_unique<graph_engine>();
  FLYWHEEL_CHECK(made->build(file, ctx, std::move(devices), std::move(observer)));
  FLYWHEEL_CHECK(fill(*made));
  loaded_engine out;
  out.parameters = made->parameters();
  out.weight_bytes = made->weight_bytes();
  out.engine = std::move(made);
  return out;
}
}  // namespace

result<loaded_engine> load_engine(const io::archive& file, const context& ctx, const control& control,
                                  std::vector<std::shared_ptr<const device::device>> devices,
                                  std::shared_ptr<device::observer> observer) {
  if (std::count(devices.begin(), devices.end(), nullptr) != 0)
    return error{errc::invalid_argument, "a device of the list is null", "devices"};
  return make_engine(file, ctx, std::move(devices), std::move(observer),
                     [&](graph_engine& e) { return e.load(file, control); });
}

result<loaded_engine> measure_engine(const io::archive& file, const context& ctx) {
  return make_engine(file, ctx, {}, {}, [&](graph_engine& e) { return e.measure(file); });
}

}  // namespace flywheel::inline v0::detail
