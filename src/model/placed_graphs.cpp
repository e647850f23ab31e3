#include "src/model/placed_graphs.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::detail {

template <class Body>
result<void> placed_graphs::for_each_seat(Body&& body) const {
  for (const auto& g : graphs_)
    for (const auto& s : g->seats) FLYWHEEL_CHECK(body(*s));
  return {};
}

result<void> placed_graphs::place(const context& ctx, std::vector<std::shared_ptr<const device::device>> devices,
                                  std::vector<graph::graph> graphs) {
  ctx_ = ctx;
  devices_ = std::move(devices);
  lost_.assign(devices_.size(), false);
  std::vector<const device::device*> list;
  for (const auto& d : devices_) list.push_back(d.get());
  for (graph::graph& g : graphs) {
    graphs_.push_back(std::make_unique<placed_graph>());
    placed_graph& placed = *graphs_.back();
    placed.whole = std::move(g);
    FLYWHEEL_TRY(device::placement where, device::partition(placed.whole, list));
    const auto add = [&](std::size_t d, std::vector<std::uint32_t> nodes) {
      placed.seats.push_back(std::make_unique<seat>());
      placed.seats.back()->part = {&placed.whole, std::move(nodes)};
      placed.seats.back()->device = d;
    };
    for (device::placed_part& p : where.parts) {
      // What may have to be done again elsewhere is one node: its inputs are still there when it fails, while those of
      // a node before it may have been written over.
      if (p.device + 1 == devices_.size())
        add(p.device, std::move(p.part.nodes));
      else
        for (const std::uint32_t node : p.part.nodes) add(p.device, {node});
    }
  }
  return {};
}

bool placed_graphs::takes(std::size_t d, const seat& s) const {
  return std::all_of(s.part.nodes.begin(), s.part.nodes.end(),
                     [&](std::uint32_t i) { return devices_[d]->query(*s.part.whole, s.part.whole->nodes[i]).ok; });
}

/// What the device is to run and does not yet.
std::vector<device::subgraph> placed_graphs::parts_of(std::size_t d) const {
  std::vector<device::subgraph> parts;
  for (const auto& g : graphs_)
    for (const auto& s : g->seats)
      if (s->device == d && !s->current.load(std::memory_order_relaxed)) parts.push_back(s->part);
  return parts;
}

/// Compiles the parts of a device that have no executable of its yet.
result<void> placed_graphs::seat_all(std::size_t d, std::shared_ptr<const device::device_weights> weights) const {
  weights_.push_back(weights);
  return for_each_seat([&](seat& s) -> result<void> {
    if (s.device != d || s.current.load(std::memory_order_relaxed)) return {};
    FLYWHEEL_TRY(auto made, devices_[d]->compile(s.part, weights));
    s.executables.push_back(std::move(made));
    s.current.store(s.executables.back().get(), std::memory_order_release);
    return {};
  });
}

result<void> placed_graphs::load(const io::archive& file, const control& control) {
  FLYWHEEL_CHECK(measure_successors(file));
  file_ = file;
  const std::scoped_lock lock(mutex_);
  for (std::size_t d = 0; d < devices_.size(); ++d) {
    const auto parts = parts_of(d);
    if (parts.empty()) continue;
    auto weights = devices_[d]->load(parts, file, ctx_.executor(), ctx_.memory(), control);
    const result<void> done = weights ? seat_all(d, *std::move(weights)) : result<void>(std::move(weights).error());
    if (done) continue;
    if (done.error().code != errc::device || d + 1 == devices_.size()) return done;
    FLYWHEEL_CHECK(move_off(d, done.error()));
  }
  return {};
}

result<void> placed_graphs::measure(const io::archive& file) {
  for (std::size_t d = 0; d < devices_.size(); ++d) {
    const auto parts = parts_of(d);
    if (parts.empty()) continue;
    FLYWHEEL_TRY(auto weights, devices_[d]->measure(parts, file));
    FLYWHEEL_CHECK(seat_all(d, std::move(weights)));
  }
  return measure_successors(file);
}

/// Executables without weights, for the scratch memory that a workspace needs when a device takes over.
result<void> placed_graphs::measure_successors(const io::archive& file) {
  return for_each_seat([&](seat& s) -> result<void> {
    for (std::size_t d = s.device + 1; d < devices_.size(); ++d) {
      if (!takes(d, s)) continue;
      FLYWHEEL_TRY(auto weights, devices_[d]->measure({&s.part, 1}, file));
      FLYWHEEL_TRY(auto made, devices_[d]->compile(s.part, std::move(weights)));
      s.successors.push_back(std::move(made));
    }
    return {};
  });
}

std::size_t placed_graphs::weight_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::size_t sum = 0;
  for (const auto& w : weights_) sum += w->bytes();
  return sum;
}

std::size_t placed_graphs::scratch_bytes(std::int64_t max_tokens) const {
  const std::scoped_lock lock(mutex_);
  const unsigned workers = ctx_.executor().concurrency();
  std::size_t most = 0;
  (void)for_each_seat([&](const seat& s) -> result<void> {
    for (const auto* list : {&s.executables, &s.successors})
      for (const auto& e : *list) most = std::max(most, e->scratch_bytes(max_tokens, max_tokens, workers));
    return {};
  });
  return most;
}

/// Gives the parts of a device that is lost to those that follow it in the list. Under mutex_.
result<void> placed_graphs::move_off(std::size_t d, const error& why) const {
  if (!lost_[d]) ctx_.log(log_level::warning, why.to_string() + "; other devices do its work from now on");
  lost_[d] = true;
  FLYWHEEL_CHECK(for_each_seat([&](seat& s) -> result<void> {
    if (s.device != d) return {};
    do ++s.device;
    while (s.device + 1 < devices_.size() && (lost_[s.device] || !takes(s.device, s)));
    s.current.store(nullptr, std::memory_order_relaxed);
    return {};
  }));
  for (std::size_t next = d + 1; next < devices_.size(); ++next) {
    const auto moved = parts_of(next);
    if (moved.empty()) continue;
    auto weights = devices_[next]->load(moved, file_, ctx_.executor(), ctx_.memory(), {});
    const result<void> done = weights ? seat_all(next, *std::move(weights)) : result<void>(std::move(weights).error());
    if (done) continue;
    if (done.error().code != errc::device || next + 1 == devices_.size()) return done;
    return move_off(next, done.error());
  }
  return {};
}

result<void> placed_graphs::replace(const seat& failed, const device::executable* tried, const error& why) const {
  return guarded([&]() -> result<void> {
    const std::scoped_lock lock(mutex_);
    const device::executable* now = failed.current.load(std::memory_order_acquire);
    if (now != nullptr && now != tried) return {};  // another thread was quicker
    if (failed.device + 1 == devices_.size()) return why;
    return move_off(failed.device, why);
  });
}

result<void> placed_graphs::run(std::size_t graph, const device::bindings& b) const {
  const auto& seats = graphs_[graph]->seats;
  for (std::size_t i = 0; i < seats.size();) {
    const device::executable* e = seats[i]->current.load(std::memory_order_acquire);
    const result<void> done = e->run(b);
    if (done) {
      ++i;
    } else {
      if (done.error().code != errc::device) return done;
      FLYWHEEL_CHECK(replace(*seats[i], e, done.error()));
    }
  }
  return {};
}

}  // namespace flywheel::inline v0::detail
