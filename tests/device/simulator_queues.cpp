// Simulated NPUs are asynchronous, overtake, and fail when told to.
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "device/simulator.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

const flywheel_matmul small = matmul(3, 40, 200, {8, 0});

constexpr std::uint64_t milliseconds = 1'000'000;

/// Nothing is left of what tests made.
void require_nothing_alive(const npu_fixture& npu) {
  const auto r = npu.simulator->report();
  REQUIRE(r.buffers == 0);
  REQUIRE(r.bytes_alive == 0);
  REQUIRE(r.executables == 0);
  REQUIRE(r.fences == 0);
  REQUIRE(r.releases == r.allocations + r.imports);
}

}  // namespace

#if !FLYWHEEL_SERIAL
TEST_CASE("submissions end in another order than they were made", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile, "delay_us=3000,seed=5");
    {
      const npu_job job(npu, small, 1);
      std::vector<flywheel_buffer*> outputs;
      std::vector<flywheel_fence> fences;
      for (int i = 0; i < 8; ++i) {
        outputs.push_back(npu.alloc(job.result_count() * 4));
        REQUIRE(job.submit(fences.emplace_back(), {}, outputs.back()) == FLYWHEEL_OK);
      }
      std::vector<std::size_t> order;
      std::vector<bool> ended(fences.size());
      while (order.size() < fences.size())
        for (std::size_t i = 0; i < fences.size(); ++i) {
          if (ended[i]) continue;
          const flywheel_status status = npu.t.wait(npu.d, fences[i], 1000);
          if (status == FLYWHEEL_TIMEOUT) continue;
          REQUIRE(status == FLYWHEEL_OK);
          ended[i] = true;
          order.push_back(i);
        }
      CHECK(!std::is_sorted(order.begin(), order.end()));
      for (flywheel_buffer* b : outputs) {
        CHECK(same_floats(npu.read(b, job.result_count()), job.from.product(small)));
        npu.t.release(npu.d, b);
      }
      // A fence is gone once it has been waited for.
      CHECK(npu.t.wait(npu.d, fences[0], 0) == FLYWHEEL_INVALID_ARGUMENT);
      CHECK(npu.error().find("has been waited for") != std::string::npos);
    }
    require_nothing_alive(npu);
  }
}
#endif

TEST_CASE("fences order what depends on each other", "[simulator]") {
  for (const char* profile : simulator_profiles)
    for (int seed = 1; seed <= 10; ++seed) {
      npu_fixture npu(profile, "delay_us=300,seed=" + std::to_string(seed));
      const npu_job first(npu, small, 1), second(npu, small, 2), third(npu, small, 3);
      flywheel_fence a = 0, b = 0, c = 0;
      // All write the first one's output: the last of the chain stays.
      REQUIRE(first.submit(a) == FLYWHEEL_OK);
      REQUIRE(second.submit(b, {a}, first.output) == FLYWHEEL_OK);
      REQUIRE(third.submit(c, {0, b, a, b}, first.output) == FLYWHEEL_OK);
      REQUIRE(npu.t.wait(npu.d, c, npu_job::forever) == FLYWHEEL_OK);
      CHECK(npu.t.wait(npu.d, a, 0) == FLYWHEEL_OK);  // c ended after both
      CHECK(npu.t.wait(npu.d, b, 0) == FLYWHEEL_OK);
      REQUIRE(same_floats(first.result(), third.from.product(small)));
      // What has been waited for is signalled.
      REQUIRE(second.submit(b, {a, c}) == FLYWHEEL_OK);
      REQUIRE(npu.t.wait(npu.d, b, npu_job::forever) == FLYWHEEL_OK);
    }
}

TEST_CASE("submitting and waiting allocate nothing", "[simulator]") {
  npu_fixture npu("xdna-sim");
  npu.simulator->start_trace(1000);
  const npu_job job(npu, small, 1);
  REQUIRE(job.run() == FLYWHEEL_OK);
  const flywheel_input input{{job.codes, 0}, {job.scales, 0}};
  const flywheel_region w{job.weights, 0}, y{job.output, 0};
  const flywheel_bindings b{sizeof b, 1, 1, &input, &w, &y};
  flywheel_fence fence = 0;
  const std::uint64_t before = allocation_count();
  const flywheel_status submitted = npu.t.submit(npu.d, job.executable, &b, nullptr, 0, &fence);
  const flywheel_status waited = npu.t.wait(npu.d, fence, npu_job::forever);
  CHECK(allocation_count() == before);
  CHECK(submitted == FLYWHEEL_OK);
  CHECK(waited == FLYWHEEL_OK);
}

TEST_CASE("more submissions than fit are refused until some were waited for", "[simulator]") {
  npu_fixture npu("hexagon-sim");
  const npu_job job(npu, small, 1);
  std::vector<flywheel_buffer*> outputs;
  std::vector<flywheel_fence> fences;
  for (std::uint32_t i = 0; i < npu.caps.max_in_flight; ++i) {
    outputs.push_back(npu.alloc(job.result_count() * 4));
    REQUIRE(job.submit(fences.emplace_back(), {}, outputs.back()) == FLYWHEEL_OK);
  }
  flywheel_fence more = 0;
  CHECK(job.submit(more) == FLYWHEEL_FAILED);
  CHECK(npu.error().find("in flight") != std::string::npos);
  REQUIRE(npu.t.wait(npu.d, fences.back(), npu_job::forever) == FLYWHEEL_OK);
  REQUIRE(job.submit(fences.back()) == FLYWHEEL_OK);
  CHECK(std::set(fences.begin(), fences.end()).size() == fences.size());
  for (const flywheel_fence f : fences) CHECK(npu.t.wait(npu.d, f, npu_job::forever) == FLYWHEEL_OK);
  for (flywheel_buffer* b : outputs) npu.t.release(npu.d, b);
}

#if !FLYWHEEL_SERIAL
TEST_CASE("several threads drive one device", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile, "delay_us=100");
    std::vector<std::unique_ptr<npu_job>> jobs;
    for (std::uint32_t i = 0; i < 4; ++i) jobs.push_back(std::make_unique<npu_job>(npu, small, i + 1));
    std::vector<int> good(jobs.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < jobs.size(); ++i)
      threads.emplace_back([&, i] {
        for (int n = 0; n < 20; ++n) {
          flywheel_fence fence = 0;
          const npu_job& job = *jobs[i];
          void* at = nullptr;
          if (job.submit(fence) != FLYWHEEL_OK || npu.t.wait(npu.d, fence, npu_job::forever) != FLYWHEEL_OK) continue;
          if (npu.t.map(npu.d, job.output, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) != FLYWHEEL_OK) continue;
          std::vector<float> y(job.result_count());
          std::memcpy(y.data(), at, y.size() * 4);
          std::memset(at, 0, y.size() * 4);
          if (npu.t.unmap(npu.d, job.output) == FLYWHEEL_OK) good[i] += same_floats(y, job.from.product(small));
        }
      });
    for (std::thread& t : threads) t.join();
    CHECK(good == std::vector<int>(jobs.size(), 20));
    jobs.clear();
    require_nothing_alive(npu);
  }
}
#endif

TEST_CASE("a failed submission spoils its output, and the next one works", "[simulator]") {
  npu_fixture npu("xdna-sim", "faults=failed,fault_rate=0.5,seed=3");
  const npu_job job(npu, small, 1);
  int failed = 0;
  for (int i = 0; i < 40; ++i) {
    const flywheel_status status = job.run();
    const bool right = same_floats(job.result(), job.from.product(small));
    REQUIRE(right == (status == FLYWHEEL_OK));
    if (status == FLYWHEEL_OK) continue;
    REQUIRE(status == FLYWHEEL_FAILED);
    ++failed;
  }
  CHECK(failed > 5);
  CHECK(failed < 35);
  CHECK(npu.simulator->report().faults == static_cast<std::uint64_t>(failed));
}

TEST_CASE("decisions about faults follow the seed", "[simulator]") {
  const auto run = [](int seed) {
    npu_fixture npu("xdna-sim", "faults=failed+out_of_memory,fault_rate=0.3,seed=" + std::to_string(seed));
    std::string out;
    for (int i = 0; i < 60; ++i) {
      flywheel_buffer* b = nullptr;
      out += npu.t.alloc(npu.d, 64, &b) == FLYWHEEL_OK ? '.' : 'x';
      if (b) npu.t.release(npu.d, b);
    }
    return out;
  };
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
  CHECK(run(1).find('x') != std::string::npos);
  CHECK(run(1).find('.') != std::string::npos);
}

TEST_CASE("memory can run out", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile, "faults=out_of_memory,fault_rate=1");
    (void)npu.alloc(64, FLYWHEEL_OUT_OF_MEMORY);
    CHECK(npu.error().find("injected") != std::string::npos);
    if (npu.t.import_host) {
      alignas(128) static std::byte memory[256];
      flywheel_buffer* out = nullptr;
      CHECK(npu.t.import_host(npu.d, memory, 256, &out) == FLYWHEEL_OUT_OF_MEMORY);
    }
    require_nothing_alive(npu);
  }
  npu_fixture npu("xdna-sim");
  CHECK(npu.alloc(npu.caps.max_buffer_bytes + 1, FLYWHEEL_INVALID_ARGUMENT) == nullptr);
}

TEST_CASE("loading can find a blob stale or cut off", "[simulator]") {
  npu_fixture stale("hexagon-sim", "faults=stale_fingerprint,fault_rate=1");
  (void)stale.load(stale.compile({small}), FLYWHEEL_INCOMPATIBLE);
  npu_fixture cut("hexagon-sim", "faults=truncated_blob,fault_rate=1");
  (void)cut.load(cut.compile({small}), FLYWHEEL_CORRUPT);
  CHECK(cut.simulator->report().faults == 1);
  CHECK(cut.simulator->report().loads == 0);
}

#if !FLYWHEEL_SERIAL
TEST_CASE("a submission that hangs ends when the host gives up", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile, "faults=timeout,fault_rate=1");
    flywheel_fence fence = 0, behind = 0;
    {
      const npu_job job(npu, small, 1), next(npu, small, 2);
      REQUIRE(job.submit(fence) == FLYWHEEL_OK);
      REQUIRE(next.submit(behind, {fence}) == FLYWHEEL_OK);
      const auto start = std::chrono::steady_clock::now();
      CHECK(npu.t.wait(npu.d, fence, 20 * milliseconds) == FLYWHEEL_TIMEOUT);
      CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(20));
      CHECK(npu.t.wait(npu.d, fence, milliseconds) == FLYWHEEL_TIMEOUT);
      void* at = nullptr;
      CHECK(npu.t.map(npu.d, job.output, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) ==
            FLYWHEEL_INVALID_ARGUMENT);  // it might still be written
      CHECK(npu.simulator->report().fences == 2);
    }  // releases its buffers
    CHECK(npu.t.wait(npu.d, fence, npu_job::forever) == FLYWHEEL_FAILED);
    CHECK(npu.t.wait(npu.d, behind, npu_job::forever) == FLYWHEEL_FAILED);
    require_nothing_alive(npu);
  }
  // Nor does closing wait for it.
  auto simulator = device::simulated_npu::create("xdna-sim", "faults=timeout,fault_rate=1").value();
  {
    npu_fixture npu("xdna-sim", "faults=timeout,fault_rate=1");
    npu_job job(npu, small, 1);
    flywheel_fence fence = 0;
    REQUIRE(job.submit(fence) == FLYWHEEL_OK);
    simulator = npu.simulator;
  }
  CHECK(simulator->report().fences == 0);
}
#endif

TEST_CASE("a lost device stays lost, and gives back what it had", "[simulator]") {
  for (const char* profile : simulator_profiles)
    for (const bool by_fault : {true, false}) {
      CAPTURE(profile, by_fault);
      npu_fixture npu(profile, by_fault ? "faults=device_lost,fault_rate=1" : "delay_us=20000");
      {
        const npu_job job(npu, small, 1);
        const auto blob = npu.compile({small});
        flywheel_fence first = 0, second = 0;
        REQUIRE(job.submit(first) == FLYWHEEL_OK);
        (void)job.submit(second, {first});
        if (!by_fault) npu.simulator->lose();
        CHECK(npu.t.wait(npu.d, first, npu_job::forever) == FLYWHEEL_DEVICE_LOST);
        if (second != 0) CHECK(npu.t.wait(npu.d, second, npu_job::forever) == FLYWHEEL_DEVICE_LOST);
        void* at = nullptr;
        flywheel_fence fence = 0;
        CHECK(npu.t.map(npu.d, job.output, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_DEVICE_LOST);
        CHECK(job.submit(fence) == FLYWHEEL_DEVICE_LOST);
        (void)npu.alloc(64, FLYWHEEL_DEVICE_LOST);
        (void)npu.load(blob, FLYWHEEL_DEVICE_LOST);
        CHECK(npu.error().find("lost") != std::string::npos);
      }
      require_nothing_alive(npu);
    }
}

TEST_CASE("buffers used wrongly are refused", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    CAPTURE(profile);
    npu_fixture npu(profile), other(profile);
    const npu_job job(npu, small, 1);
    void* at = nullptr;
    flywheel_fence fence = 0;
    const auto refused = [&](flywheel_status status, std::string_view why) {
      CHECK(status == FLYWHEEL_INVALID_ARGUMENT);
      CAPTURE(npu.error());
      CHECK(npu.error().find(why) != std::string::npos);
    };
    REQUIRE(npu.t.map(npu.d, job.codes, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);
    refused(npu.t.map(npu.d, job.codes, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at), "mapped already");
    refused(job.submit(fence), "codes of input 0: its buffer is mapped");
    REQUIRE(npu.t.unmap(npu.d, job.codes) == FLYWHEEL_OK);
    refused(npu.t.unmap(npu.d, job.codes), "not mapped");

    const auto submit_with = [&](flywheel_region codes, flywheel_region output, std::uint32_t n_inputs = 1) {
      const flywheel_input input{codes, {job.scales, 0}};
      const flywheel_region w{job.weights, 0};
      const flywheel_bindings b{sizeof b, n_inputs, 1, &input, &w, &output};
      return npu.t.submit(npu.d, job.executable, &b, nullptr, 0, &fence);
    };
    const flywheel_region codes{job.codes, 0}, output{job.output, 0};
    refused(submit_with({job.codes, 4}, output), "no multiple of");
    refused(submit_with({job.codes, npu.caps.alignment}, output), "of a buffer of");
    refused(submit_with({job.codes, ~std::uint64_t{0} / npu.caps.alignment * npu.caps.alignment}, output),
            "of a buffer of");
    refused(submit_with({nullptr, 0}, output), "no buffer");
    refused(submit_with({reinterpret_cast<flywheel_buffer*>(std::uintptr_t{0x1234}), 0}, output), "no buffer");
    refused(submit_with(codes, {job.scales, 0}), "of a buffer of");
    refused(submit_with(codes, {job.codes, 0}), "overlaps");
    refused(submit_with(codes, output, 2), "1 inputs");
    refused(submit_with(codes, {job.weights, 0}), "overlaps");
    refused(job.submit(fence, {0x77777701}), "none of this device");
    refused(npu.t.submit(npu.d, nullptr, nullptr, nullptr, 0, &fence), "no executable");
    refused(npu.t.submit(npu.d, job.executable, nullptr, nullptr, 0, &fence), "null");
    refused(npu.t.wait(npu.d, 0, 0), "no fence");

    // Handles of another device, and of what is gone.
    flywheel_buffer* const foreign = other.alloc(4096);
    refused(submit_with({foreign, 0}, output), "no buffer");
    refused(npu.t.map(npu.d, foreign, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at), "no buffer");
    flywheel_buffer* const gone = npu.alloc(4096);
    npu.t.release(npu.d, gone);
    npu.t.release(npu.d, gone);
    CHECK(npu.error().find("released before") != std::string::npos);
    refused(npu.t.map(npu.d, gone, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at), "released before");
    other.t.release(other.d, foreign);
    flywheel_executable* const executable = npu.load(npu.compile({small}));
    npu.t.unload(npu.d, executable);
    npu.t.unload(npu.d, executable);
    CHECK(npu.error().find("unloaded before") != std::string::npos);
    npu.t.release(npu.d, nullptr);
    npu.t.unload(npu.d, nullptr);
    refused(npu.t.alloc(npu.d, 0, nullptr), "no bytes");
    REQUIRE(job.run() == FLYWHEEL_OK);
    CHECK(same_floats(job.result(), job.from.product(small)));
  }
}

#if !FLYWHEEL_SERIAL
TEST_CASE("a buffer that is released in use goes when that ends", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile, "delay_us=30000,seed=2");
    flywheel_fence fence = 0;
    {
      const npu_job job(npu, small, 1);
      REQUIRE(job.submit(fence) == FLYWHEEL_OK);
      npu.t.release(npu.d, job.output);
    }
    const flywheel_status status = npu.t.wait(npu.d, fence, npu_job::forever);
    CHECK(status == FLYWHEEL_FAILED);
    const auto r = npu.simulator->report();
    CHECK(r.buffers == 0);
    CHECK(r.executables == 0);
    CHECK(r.bytes_alive == 0);
  }
}
#endif

TEST_CASE("memory of its own is copied and poisoned, the host's is not", "[simulator]") {
  {
    npu_fixture npu("xdna-sim");
    CHECK(npu.t.import_host == nullptr);
    flywheel_buffer* const b = npu.alloc(100);
    void* at = nullptr;
    REQUIRE(npu.t.map(npu.d, b, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);
    std::memset(at, 7, 100);
    REQUIRE(npu.t.unmap(npu.d, b) == FLYWHEEL_OK);
    auto r = npu.simulator->report();
    CHECK(r.bytes_from_device == 100);
    CHECK(r.bytes_to_device == 100);
    REQUIRE(npu.t.map(npu.d, b, FLYWHEEL_MAP_READ, &at) == FLYWHEEL_OK);
    CHECK(static_cast<unsigned char*>(at)[50] == 7);
    REQUIRE(npu.t.unmap(npu.d, b) == FLYWHEEL_OK);
    r = npu.simulator->report();
    CHECK(r.bytes_from_device == 200);
    CHECK(r.bytes_to_device == 100);
    CHECK(npu.t.map(npu.d, b, 0, &at) == FLYWHEEL_INVALID_ARGUMENT);
#if !FLYWHEEL_SANITIZED  // the sanitizer ends the program instead
    CHECK(static_cast<unsigned char*>(at)[50] == 0xDB);
    static_cast<unsigned char*>(at)[50] = 9;
    void* again = nullptr;
    CHECK(npu.t.map(npu.d, b, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &again) == FLYWHEEL_INVALID_ARGUMENT);
    CHECK(npu.error().find("wrote to byte 50") != std::string::npos);
#endif
    REQUIRE(npu.t.map(npu.d, b, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);  // contents survive
    CHECK(static_cast<unsigned char*>(at)[50] == 7);
    REQUIRE(npu.t.unmap(npu.d, b) == FLYWHEEL_OK);
    npu.t.release(npu.d, b);
  }
  npu_fixture npu("hexagon-sim");
  alignas(128) std::byte memory[256] = {};
  flywheel_buffer* b = nullptr;
  CHECK(npu.t.import_host(npu.d, memory + 1, 100, &b) == FLYWHEEL_INVALID_ARGUMENT);
  REQUIRE(npu.t.import_host(npu.d, memory, 256, &b) == FLYWHEEL_OK);
  void* at = nullptr;
  REQUIRE(npu.t.map(npu.d, b, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);
  CHECK(at == memory);
  REQUIRE(npu.t.unmap(npu.d, b) == FLYWHEEL_OK);
  const auto r = npu.simulator->report();
  CHECK(r.imports == 1);
  CHECK(r.bytes_from_device == 0);
  CHECK(r.bytes_to_device == 0);
  npu.t.release(npu.d, b);
  require_nothing_alive(npu);
}

TEST_CASE("options of simulated NPUs are checked", "[simulator]") {
  const auto message = [](std::string_view options) {
    const auto made = device::simulated_npu::create("xdna-sim", options);
    return made ? std::string() : made.error().to_string();
  };
  CHECK(message("seed=7,delay_us=10,faults=timeout+failed,fault_rate=0.25,scratch=100000").empty());
  CHECK(message("faults=all").empty());
  CHECK(message("color=red").find("color") == 0);
  CHECK(message("seed=x").find("seed") == 0);
  CHECK(message("seed=").find("seed") == 0);
  CHECK(message("seed=1 ").find("seed") == 0);
  CHECK(message("fault_rate=1.5").find("fault_rate") == 0);
  CHECK(message("fault_rate=nan").find("fault_rate") == 0);
  CHECK(message("fault_rate=0.5x").find("fault_rate") == 0);
  CHECK(message("faults=fire").find("fire") != std::string::npos);
  CHECK(message("faults=").find("faults") == 0);
  CHECK(message("scratch=0").find("scratch") == 0);
  CHECK(message("delay_us=99999999999").find("delay_us") == 0);
  const auto unknown = device::simulated_npu::create("toaster");
  REQUIRE(!unknown);
  CHECK(unknown.error().code == errc::not_found);
  CHECK(unknown.error().message.find("hexagon-sim, xdna-sim") != std::string::npos);
}

TEST_CASE("a device lives until its last user is gone", "[simulator]") {
  auto simulator = device::simulated_npu::create("hexagon-sim").value();
  const flywheel_device_table a = simulator->table(), b = simulator->table();
  CHECK(a.self == b.self);
  simulator.reset();
  a.close(a.self);
  char text[128];
  CHECK(b.fingerprint(b.self, text, sizeof text) == FLYWHEEL_OK);
  b.close(b.self);
}

TEST_CASE("report and trace of a simulated NPU can be read", "[simulator]") {
  const temp_folder folder;
  npu_fixture npu("xdna-sim");
  npu.simulator->start_trace();
  const npu_job job(npu, matmul(9, 70, 300, {4, 128}), 1);
  for (int i = 0; i < 3; ++i) REQUIRE(job.run() == FLYWHEEL_OK);
  const std::string text = npu.simulator->describe();
  CHECK(text.find("xdna-sim, simulated") == 0);
  CHECK(text.find("submissions             3\n") != std::string::npos);

  REQUIRE(npu.simulator->write_trace(folder / "trace.json"));
  std::ifstream in(folder / "trace.json");
  const auto trace = nlohmann::json::parse(in);
  std::map<std::string, int> names;
  std::map<int, double> lane_end;
  double matmul_us = 0;
  for (const auto& e : trace.at("traceEvents")) {
    if (e.at("ph") != "X") continue;
    ++names[e.at("name")];
    const double begin = e.at("ts"), duration = e.at("dur");
    double& end = lane_end[e.at("tid")];
    CHECK(begin >= end - 1e-6);  // lanes do not overlap themselves
    end = begin + duration;
    if (e.at("name") != "matmul 70 x 300") continue;
    matmul_us += duration;
    CHECK(e.at("args").at("rows") == 9);
    CHECK(e.at("args").at("bits") == 4);
  }
  CHECK(names["launch"] == 3);
  CHECK(names["matmul 70 x 300"] == 3);
  CHECK(names["transfer 70 x 300"] == 3);
  CHECK(names["host"] >= 3);
  const auto r = npu.simulator->report();
  CHECK(matmul_us == Approx(1e6 * static_cast<double>(r.cycles - r.launch_cycles) / r.clock_hz));
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) files += entry.is_regular_file();
  CHECK(files == 1);  // nothing temporary is left
  CHECK(!npu.simulator->write_trace(folder / "none" / "trace.json"));

  npu.simulator->start_trace(2);
  REQUIRE(job.run() == FLYWHEEL_OK);
  REQUIRE(npu.simulator->write_trace(folder / "trace.json"));
  std::ifstream again(folder / "trace.json");
  CHECK(nlohmann::json::parse(again).at("otherData").at("events_dropped").get<int>() > 0);
}
