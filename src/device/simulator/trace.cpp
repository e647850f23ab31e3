#include "src/device/simulator/trace.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/io/output_file.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

using json = nlohmann::ordered_json;
using kind = trace_event::kind;

// Lanes, from top to bottom.
constexpr int host_lane = 0, dma_lane = 1, first_matrix_lane = 2;
constexpr int process = 1;

json lane_name(int lane, const std::string& name) {
  return {{"ph", "M"}, {"pid", process}, {"tid", lane}, {"name", "thread_name"}, {"args", {{"name", name}}}};
}

json event_json(const profile& p, const trace_event& e) {
  const double us = 1e6 / p.clock_hz;
  const std::string shape = std::to_string(e.of.n) + " x " + std::to_string(e.of.k);
  json out{{"ph", "X"},
           {"pid", process},
           {"tid", host_lane},
           {"name", "host"},
           {"ts", static_cast<double>(e.begin) * us},
           {"dur", static_cast<double>(e.cycles) * us}};
  if (e.what == kind::host) return out;
  out["tid"] = e.what == kind::transfer ? dma_lane : first_matrix_lane + static_cast<int>(e.queue);
  out["args"] = {{"submission", e.submission}, {"cycles", e.cycles}};
  json& args = out["args"];
  if (e.what == kind::launch) {
    out["name"] = "launch";
    return out;
  }
  out["name"] = (e.what == kind::transfer ? "transfer " : "matmul ") + shape;
  args["rows"] = e.of.rows;
  args["bits"] = e.of.bits;
  args["group"] = e.of.group;
  if (e.what == kind::transfer) {
    args["bytes"] = e.bytes;
  } else {
    args["busy_cycles"] = e.busy;
    args["multiply_adds"] = e.of.rows * e.of.n * e.of.k;
    args["tile_multiply_adds"] = e.tile_multiply_adds;
  }
  return out;
}

/// How many submissions are on the device, whenever that changes.
std::vector<json> load_counter(const profile& p, const std::vector<trace_event>& events) {
  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> spans;
  for (const trace_event& e : events) {
    if (e.what != kind::launch && e.what != kind::matmul) continue;
    const auto [span, fresh] = spans.try_emplace(e.submission, e.begin, e.begin + e.cycles);
    if (!fresh) span->second.second = std::max(span->second.second, e.begin + e.cycles);
  }
  std::map<std::uint64_t, int> changes;
  for (const auto& [submission, span] : spans) {
    ++changes[span.first];
    --changes[span.second];
  }
  std::vector<json> out;
  int running = 0;
  for (const auto& [at, change] : changes)
    out.push_back({{"ph", "C"},
                   {"pid", process},
                   {"name", "submissions running"},
                   {"ts", static_cast<double>(at) * 1e6 / p.clock_hz},
                   {"args", {{"submissions", running += change}}}});
  return out;
}

}  // namespace

void trace_log::start(std::uint64_t limit) noexcept {
  events_ = {};
  dropped_ = 0;
  for (limit_ = limit; limit_ > 0; limit_ /= 2) {
    try {
      events_.reserve(static_cast<std::size_t>(limit_));
      return;
    } catch (...) {  // half as many, then
    }
  }
}

void trace_log::add(const trace_event& e) noexcept {
  if (events_.size() < limit_)
    events_.push_back(e);
  else if (on())
    ++dropped_;
}

result<void> write_chrome_trace(const profile& p, const std::vector<trace_event>& events, std::uint64_t dropped,
                                const std::filesystem::path& file) {
  FLYWHEEL_TRY(auto out, io::detail::output_file::create(file));
  const auto write = [&](const std::string& text) {
    return out.write(std::as_bytes(std::span(text.data(), text.size())));
  };
  const json about{{"device", p.name}, {"clock_hz", p.clock_hz}, {"time", "simulated"}, {"events_dropped", dropped}};
  FLYWHEEL_CHECK(write("{\"displayTimeUnit\":\"ns\",\"otherData\":" + about.dump() + ",\"traceEvents\":[\n"));
  const json process_name{{"ph", "M"}, {"pid", process}, {"name", "process_name"}, {"args", {{"name", p.name}}}};
  FLYWHEEL_CHECK(write(process_name.dump()));
  const auto next = [&](const json& event) { return write(",\n" + event.dump()); };
  FLYWHEEL_CHECK(next(lane_name(host_lane, "host")));
  FLYWHEEL_CHECK(next(lane_name(dma_lane, "DMA")));
  for (std::uint32_t q = 0; q < p.queues; ++q)
    FLYWHEEL_CHECK(next(lane_name(first_matrix_lane + static_cast<int>(q), "matrix unit " + std::to_string(q))));
  for (const trace_event& e : events) FLYWHEEL_CHECK(next(event_json(p, e)));
  for (const json& counter : load_counter(p, events)) FLYWHEEL_CHECK(next(counter));
  FLYWHEEL_CHECK(write("\n]}\n"));
  return out.commit();
}

}  // namespace flywheel::inline v0::device::simulation
