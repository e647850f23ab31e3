// The table of a simulated NPU, and its C++ face.
#include "flywheel/device/simulator.hpp"

#include <cstdio>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/device/simulator/npu.hpp"

namespace flywheel::inline v0::device {

simulated_npu::~simulated_npu() = default;

namespace simulation {
namespace {

npu& self(flywheel_device* device) noexcept { return *reinterpret_cast<npu*>(device); }

/// A function of the table that calls `Method`: nothing is thrown across it.
template <auto Method>
struct entry;

template <class... Args, flywheel_status (npu::*Method)(Args...)>
struct entry<Method> {
  static flywheel_status call(flywheel_device* device, Args... args) noexcept {
    try {
      return (self(device).*Method)(args...);
    } catch (const std::bad_alloc&) {
      return self(device).fail(FLYWHEEL_OUT_OF_MEMORY, "the host is out of memory");
    } catch (const std::exception& e) {
      return self(device).fail(FLYWHEEL_FAILED, e.what());
    } catch (...) {
      return self(device).fail(FLYWHEEL_FAILED, "exception");
    }
  }
};

template <class... Args, void (npu::*Method)(Args...)>
struct entry<Method> {
  static void call(flywheel_device* device, Args... args) noexcept {
    try {
      (self(device).*Method)(args...);
    } catch (...) {  // of locks only: there is nobody to tell
    }
  }
};

class simulated final : public simulated_npu {
 public:
  explicit simulated(std::shared_ptr<npu> device) : device_(std::move(device)) {}

  [[nodiscard]] flywheel_device_table table() override {
    device_->open();
    flywheel_device_table t{};
    t.size = sizeof t;
    t.self = reinterpret_cast<flywheel_device*>(device_.get());
    t.close = entry<&npu::close>::call;
    t.caps = entry<&npu::caps>::call;
    t.fingerprint = entry<&npu::fingerprint>::call;
    t.query = entry<&npu::query>::call;
    t.packed_size = entry<&npu::packed_size>::call;
    t.pack = entry<&npu::pack>::call;
    t.unpack = entry<&npu::unpack>::call;
    t.compile = entry<&npu::compile>::call;
    t.load = entry<&npu::load>::call;
    t.unload = entry<&npu::unload>::call;
    t.alloc = entry<&npu::alloc>::call;
    if (device_->on().kind->unified_memory) t.import_host = entry<&npu::import_host>::call;
    t.map = entry<&npu::map>::call;
    t.unmap = entry<&npu::unmap>::call;
    t.release = entry<&npu::release>::call;
    t.submit = entry<&npu::submit>::call;
    t.wait = entry<&npu::wait>::call;
    t.last_error = entry<&npu::last_error>::call;
    return t;
  }
  [[nodiscard]] simulator_report report() const override { return device_->report(); }
  [[nodiscard]] std::string describe() const override;
  void start_trace(std::uint64_t limit) override { device_->start_trace(limit); }
  [[nodiscard]] result<void> write_trace(const std::filesystem::path& file) const override {
    return flywheel::detail::guarded([&] { return device_->write_trace(file); });
  }
  void lose() override { device_->lose(); }

 private:
  std::shared_ptr<npu> device_;
};

std::string simulated::describe() const {
  const simulator_report r = report();
  std::string out = std::string(device_->on().kind->name) + ", simulated: cycles say nothing about this machine\n";
  const auto line = [&](const char* name, const std::string& value) {
    out.append(name).append(std::string(24 - std::string_view(name).size(), ' ')).append(value).append("\n");
  };
  const auto text = [](const char* format, double value) {
    char digits[64];
    std::snprintf(digits, sizeof digits, format, value);
    return std::string(digits);
  };
  const auto count = [&](const char* name, std::uint64_t value) { line(name, std::to_string(value)); };
  const auto share = [&](const char* name, std::uint64_t cycles) {
    const double of_all = r.cycles == 0 ? 0 : 100 * static_cast<double>(cycles) / static_cast<double>(r.cycles);
    line(name, std::to_string(cycles) + text("  (%.1f%% of cycles)", of_all));
  };
  count("cycles", r.cycles);
  line("simulated time",
       text("%.3f ms", 1e3 * static_cast<double>(r.cycles) / r.clock_hz) + text(" at %.2f GHz", r.clock_hz * 1e-9));
  share("  matrix units busy", r.compute_cycles);
  share("  DMA busy", r.dma_cycles);
  share("  launches", r.launch_cycles);
  count("multiply-adds", r.multiply_adds);
  count("  in whole tiles", r.tile_multiply_adds);
  line("utilisation", text("%.2f%%", 100 * r.utilisation));
  count("submissions", r.submissions);
  count("compilations", r.compilations);
  count("loads", r.loads);
  line("buffers", std::to_string(r.allocations) + " allocated, " + std::to_string(r.imports) + " imported, " +
                      std::to_string(r.releases) + " released");
  line("alive", std::to_string(r.buffers) + " buffers of " + std::to_string(r.bytes_alive) + " bytes, " +
                    std::to_string(r.executables) + " executables, " + std::to_string(r.fences) + " fences");
  line("copied",
       std::to_string(r.bytes_to_device) + " bytes to the device, " + std::to_string(r.bytes_from_device) + " from it");
  count("injected faults", r.faults);
  return out;
}

}  // namespace
}  // namespace simulation

result<std::shared_ptr<simulated_npu>> simulated_npu::create(std::string_view profile, std::string_view options) {
  return detail::guarded([&]() -> result<std::shared_ptr<simulated_npu>> {
    const simulation::profile* found = nullptr;
    std::string known;
    for (const simulation::profile& p : simulation::profiles()) {
      if (p.name == profile) found = &p;
      known.append(known.empty() ? "" : ", ").append(p.name);
    }
    if (!found)
      return error{errc::not_found, "there is no such simulated NPU; known are " + known, std::string(profile)};
    FLYWHEEL_TRY(const auto parsed, simulation::parse_npu_options(options));
    auto device = std::make_shared<simulation::npu>(*found, parsed);
    FLYWHEEL_CHECK(device->start());
    return std::shared_ptr<simulated_npu>(std::make_shared<simulation::simulated>(std::move(device)));
  });
}

}  // namespace flywheel::inline v0::device
