#include "src/model/placed_graphs.hpp"

#include <algorithm>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::detail {

/// Counts a run. The last one gives back what was retired: a run that begins later finds only what replaced it, since
/// it is counted before it looks (both sequentially consistent).
class placed_graphs::running {
 public:
  explicit running(const placed_graphs& of) : of_(of) { of_.running_.fetch_add(1); }
  running(const running&) = delete;
  running& operator=(const running&) = delete;
  ~running() {
    if (of_.running_.fetch_sub(1) != 1 || !of_.any_retired_.load()) return;
    retired gone;  // ends without the lock
    const std::scoped_lock lock(of_.mutex_);
    if (of_.running_.load() != 0) return;
    std::swap(gone, of_.retired_);
    of_.any_retired_.store(false);
  }

 private:
  const placed_graphs& of_;
};

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
  weights_.resize(devices_.size());
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

std::vector<device::subgraph> placed_graphs::unseated_parts(std::size_t d) const {
  std::vector<device::subgraph> parts;
  for (const auto& g : graphs_)
    for (const auto& s : g->seats)
      if (s->device == d && !s->seated) parts.push_back(s->part);
  return parts;
}

/// Compiles what a device is to run and does not yet.
result<void> placed_graphs::seat_parts(std::size_t d, weights_ptr weights) const {
  FLYWHEEL_CHECK(for_each_seat([&](seat& s) -> result<void> {
    if (s.device != d || s.seated) return {};
    FLYWHEEL_TRY(executable_ptr made, devices_[d]->compile(s.part, weights));
    if (s.executable) retired_.executables.push_back(std::move(s.executable)), any_retired_.store(true);
    s.executable = std::move(made);
    s.current.store(s.executable.get());
    s.seated = true;
    return {};
  }));
  weights_[d].push_back(std::move(weights));
  return {};
}

/// Until every part has a device that runs it, or an error that is not a device's.
result<void> placed_graphs::seat_all(const control& control, std::vector<std::string>& said) const {
  for (std::size_t d = 0; d < devices_.size(); ++d) {
    const auto parts = unseated_parts(d);
    if (parts.empty()) continue;
    auto weights = devices_[d]->load(parts, file_, ctx_.executor(), ctx_.memory(), control);
    const result<void> done = weights ? seat_parts(d, *std::move(weights)) : result<void>(std::move(weights).error());
    if (done) continue;
    if (done.error().code != errc::device || d + 1 == devices_.size()) return done;
    lose(d, done.error(), said);
  }
  return {};
}

/// Gives the parts of a device to those that follow it in the list. Until they have executables, runs find those of the
/// lost one, which fail.
void placed_graphs::lose(std::size_t d, const error& why, std::vector<std::string>& said) const {
  lost_[d] = true;
  said.push_back(why.to_string() + "; other devices do its work from now on");
  retired_.weights.insert(retired_.weights.end(), weights_[d].begin(), weights_[d].end());
  any_retired_.store(true);
  weights_[d].clear();
  (void)for_each_seat([&](seat& s) -> result<void> {
    if (s.device != d) return {};
    s.seated = false;
    for (const auto& [next, measured] : s.successors) {
      s.device = next;
      if (next > d && !lost_[next]) break;
    }
    return {};
  });
}

result<void> placed_graphs::load(const io::archive& file, const control& control) {
  FLYWHEEL_CHECK(measure_successors(file));
  file_ = file;
  std::vector<std::string> said;
  {
    const running now(*this);  // whose end gives back what a device that fails had loaded
    const std::scoped_lock lock(mutex_);
    FLYWHEEL_CHECK(seat_all(control, said));
  }
  for (const std::string& text : said) ctx_.log(log_level::warning, text);
  return {};
}

result<void> placed_graphs::measure(const io::archive& file) {
  FLYWHEEL_CHECK(measure_successors(file));
  for (std::size_t d = 0; d < devices_.size(); ++d) {
    const auto parts = unseated_parts(d);
    if (parts.empty()) continue;
    FLYWHEEL_TRY(auto weights, devices_[d]->measure(parts, file));
    FLYWHEEL_CHECK(seat_parts(d, std::move(weights)));
  }
  return {};
}

/// Executables without weights, for the scratch memory that a workspace needs when a device takes over. A device that
/// fails at that takes nothing over.
result<void> placed_graphs::measure_successors(const io::archive& file) {
  return for_each_seat([&](seat& s) -> result<void> {
    for (std::size_t d = s.device + 1; d < devices_.size(); ++d) {
      if (!takes(d, s)) continue;
      auto weights = devices_[d]->measure({&s.part, 1}, file);
      auto made = weights ? devices_[d]->compile(s.part, *std::move(weights))
                          : result<executable_ptr>(std::move(weights).error());
      if (made)
        s.successors.emplace_back(d, *std::move(made));
      else if (made.error().code != errc::device || d + 1 == devices_.size())
        return std::move(made).error();
    }
    return {};
  });
}

std::size_t placed_graphs::weight_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::size_t sum = 0;
  for (const auto& of_device : weights_)
    for (const weights_ptr& w : of_device) sum += w->bytes();
  return sum;
}

bool placed_graphs::on_last_device() const {
  const std::scoped_lock lock(mutex_);
  bool all = true;
  (void)for_each_seat([&](const seat& s) -> result<void> {
    all = all && s.device + 1 == devices_.size();
    return {};
  });
  return all;
}

std::size_t placed_graphs::scratch_bytes(std::int64_t max_tokens) const {
  const std::scoped_lock lock(mutex_);
  const unsigned workers = ctx_.executor().concurrency();
  std::size_t most = 0;
  (void)for_each_seat([&](const seat& s) -> result<void> {
    if (s.executable) most = std::max(most, s.executable->scratch_bytes(max_tokens, max_tokens, workers));
    for (const auto& [d, e] : s.successors) most = std::max(most, e->scratch_bytes(max_tokens, max_tokens, workers));
    return {};
  });
  return most;
}

result<void> placed_graphs::replace(const seat& failed, const device::executable* tried, const error& why) const {
  return guarded([&]() -> result<void> {
    std::vector<std::string> said;
    const auto done = [&]() -> result<void> {
      const std::scoped_lock lock(mutex_);
      if (failed.current.load() != tried) return {};  // another thread was quicker
      if (failed.seated) {
        if (failed.device + 1 == devices_.size()) return why;
        lose(failed.device, why, said);
      }
      return seat_all({}, said);
    }();
    for (const std::string& text : said) ctx_.log(log_level::warning, text);
    return done;
  });
}

result<void> placed_graphs::run(std::size_t graph, const device::bindings& b) const {
  const running now(*this);
  const auto& seats = graphs_[graph]->seats;
  for (std::size_t i = 0; i < seats.size();) {
    const device::executable* e = seats[i]->current.load();
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
