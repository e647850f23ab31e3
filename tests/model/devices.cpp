// Models on simulated NPUs: the same numbers as on the CPU, whatever fails.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>

#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/simulator.hpp"
#include "flywheel/model/model.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

constexpr const char* profiles[] = {"hexagon-sim", "xdna-sim"};
constexpr dtype npu_types[] = {dtype::q8_channel, dtype::q4_channel, dtype::q8_g128, dtype::q4_g128};

/// Whatever the devices of a test said.
class messages {
 public:
  log_sink sink() {
    return [this](log_level, std::string_view text) {
      const std::scoped_lock lock(mutex_);
      all_.emplace_back(text);
    };
  }
  [[nodiscard]] std::size_t with(std::string_view text) const {
    const std::scoped_lock lock(mutex_);
    return static_cast<std::size_t>(std::count_if(
        all_.begin(), all_.end(), [&](const std::string& m) { return m.find(text) != std::string::npos; }));
  }
  [[nodiscard]] std::string all() const {
    const std::scoped_lock lock(mutex_);
    std::string text;
    for (const std::string& m : all_) text += m + "\n";
    return text;
  }
  [[nodiscard]] std::size_t size() const {
    const std::scoped_lock lock(mutex_);
    return all_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> all_;
};

struct simulated {
  std::shared_ptr<device::simulated_npu> npu;
  std::shared_ptr<const device::device> device;
};

simulated simulate(std::string_view profile, std::string_view options = {}, device::accelerator_options with = {}) {
  simulated s;
  s.npu = device::simulated_npu::create(profile, options).value();
  with.min_multiply_adds = 0;  // models of tests are small
  s.device = device::make_accelerator(s.npu->table(), {}, std::move(with)).value();
  return s;
}

/// A device that says other things of itself.
simulated simulate_with(std::string_view profile, std::string_view options, void (*change)(flywheel_device_caps&),
                        device::accelerator_options with) {
  static flywheel_status (*caps)(flywheel_device*, flywheel_device_caps*);
  static void (*changed)(flywheel_device_caps&);
  simulated s;
  s.npu = device::simulated_npu::create(profile, options).value();
  flywheel_device_table table = s.npu->table();
  caps = table.caps;
  changed = change;
  table.caps = [](flywheel_device* d, flywheel_device_caps* out) {
    const flywheel_status status = caps(d, out);
    changed(*out);
    return status;
  };
  with.min_multiply_adds = 0;
  s.device = device::make_accelerator(table, {}, std::move(with)).value();
  return s;
}

model open_with(const std::filesystem::path& path, std::vector<std::shared_ptr<const device::device>> devices,
                unsigned threads = 2, log_sink log = {}) {
  context_options options;
  options.threads = threads;
  options.log = std::move(log);
  return model::open(path, {context::create(std::move(options)).value(), {}, std::move(devices)}).value();
}

/// A llama whose matrices are all of a type that NPUs take.
std::filesystem::path npu_model(const temp_folder& folder, dtype type) {
  tiny_model m;
  m.hidden = 128;
  m.ffn = 256;
  m.layers = 2;
  m.context = 1024;
  m.weights = type;
  m.tied = false;
  const std::filesystem::path path = folder / (std::string(to_string(type)) + ".gguf");
  write_tiny_model(path, m);
  return path;
}

std::vector<token_id> ids_of(std::size_t count) {
  std::vector<token_id> ids(count);
  for (std::size_t i = 0; i < count; ++i) ids[i] = static_cast<token_id>((i * 7919 + 31) % 320);
  return ids;
}

/// Logits behind a prompt, then behind each of some further tokens.
std::vector<float> logits_of(const model& m, std::size_t prompt, int more, std::int32_t n_batch = 512) {
  session_options options;
  options.n_batch = n_batch;
  options.n_ctx = static_cast<std::int32_t>(prompt) + more;
  session s = m.new_session(options).value();
  std::vector<float> all;
  const auto keep = [&] { all.insert(all.end(), s.logits().begin(), s.logits().end()); };
  s.prefill(ids_of(prompt)).value();
  keep();
  for (int i = 0; i < more; ++i) {
    s.decode(static_cast<token_id>((5 + 13 * i) % 320)).value();
    keep();
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("logits on simulated NPUs are those of the CPU, bit for bit", "[devices]") {
  const temp_folder folder;
  for (const dtype type : npu_types) {
    const auto path = npu_model(folder, type);
    const model on_cpu = open_with(path, {});
    for (const char* profile : profiles) {
      INFO(profile << " " << to_string(type));
      const simulated s = simulate(profile, "delay_us=200");
      const bool taken = [&] {
        for (const device::weight_format& f : s.device->caps().weight_formats)
          if (f.bits == (type == dtype::q8_channel || type == dtype::q8_g128 ? 8 : 4) &&
              f.group == (type == dtype::q8_g128 || type == dtype::q4_g128 ? 128 : 0))
            return true;
        return false;
      }();
      const model on_npu = open_with(path, {s.device});
      for (const std::size_t prompt : {1, 7, 40, 300})
        CHECK(same_bits(logits_of(on_npu, prompt, 3), logits_of(on_cpu, prompt, 3)));
      CHECK((s.npu->report().submissions > 0) == taken);
    }
  }
}

TEST_CASE("after warm-up nothing is allocated, compiled or uploaded on a device", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  for (const char* profile : profiles) {
    INFO(profile);
    const simulated s = simulate(profile);
    const model m = open_with(path, {s.device});
    session run = m.new_session().value();
    run.prefill(ids_of(50)).value();
    const auto before = s.npu->report();
    for (int i = 0; i < 40; ++i) {
      run.decode(static_cast<token_id>(i)).value();
    }
    const auto after = s.npu->report();
    CHECK(after.allocations == before.allocations);
    CHECK(after.imports == before.imports);
    CHECK(after.compilations == before.compilations);
    CHECK(after.loads == before.loads);
    CHECK(after.submissions - before.submissions == 40 * 9);  // 4 per layer and the output head
    // Activations alone cross, of one row, in buffers of a page.
    const std::uint64_t to = after.bytes_to_device - before.bytes_to_device;
    const std::uint64_t from = after.bytes_from_device - before.bytes_from_device;
    if (s.device->caps().unified_memory) {
      CHECK(to + from == 0);
    } else {
      CHECK(to <= 40 * 9 * 4096);
      CHECK(from <= 40 * 9 * 4096);
      CHECK(from >= 40 * 4 * (2 * (256 + 128 + 512 + 128) + 320));
    }
  }
}

TEST_CASE("a device that is lost halfway is replaced, with the same results", "[devices]") {
  const temp_folder folder;
  for (const dtype type : {dtype::q8_channel, dtype::q4_g128}) {
    const auto path = npu_model(folder, type);
    const std::vector<float> want = logits_of(open_with(path, {}), 40, 10);
    for (const char* profile : profiles) {
      INFO(profile << " " << to_string(type));
      messages heard;
      device::accelerator_options with;
      with.log = heard.sink();
      const simulated s = simulate(profile, {}, with);
      const model m = open_with(path, {s.device}, 2, heard.sink());
      session run = m.new_session().value();
      session other = m.new_session().value();
      std::vector<float> got;
      const auto keep = [&] { got.insert(got.end(), run.logits().begin(), run.logits().end()); };
      run.prefill(ids_of(40)).value();
      keep();
      for (int i = 0; i < 10; ++i) {
        if (i == 4) s.npu->lose();
        run.decode(static_cast<token_id>((5 + 13 * i) % 320)).value();
        keep();
      }
      CHECK(same_bits(got, want));
      CHECK(heard.with("other devices do its work") == 1);
      other.prefill(ids_of(40)).value();  // a workspace made before the loss
      CHECK(std::memcmp(other.logits().data(), want.data(), other.logits().size_bytes()) == 0);
      CHECK(same_bits(logits_of(m, 40, 10), want));  // and one made after it
      CHECK(s.npu->report().executables == 0);       // nothing of the model is held twice
    }
  }
}

TEST_CASE("sessions on several threads survive the loss of their device", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const std::vector<float> want = logits_of(open_with(path, {}), 20, 60);
  for (int round = 0; round < 4; ++round) {
    const simulated s = simulate(profiles[round % 2], "delay_us=30,seed=" + std::to_string(round));
    const model m = open_with(path, {s.device}, 1);
    std::atomic<int> right{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { right += same_bits(logits_of(m, 20, 60), want); });
    while (s.npu->report().submissions < 300) std::this_thread::yield();
    s.npu->lose();
    for (std::thread& t : threads) t.join();
    CHECK(right == 4);
  }
}

TEST_CASE("more sessions than a device has places wait for each other", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const std::vector<float> want = logits_of(open_with(path, {}), 300, 5);
  messages heard;
  device::accelerator_options with;
  with.log = heard.sink();
  const simulated s = simulate_with(
      "xdna-sim", "delay_us=100", [](flywheel_device_caps& c) { c.max_in_flight = 1; }, with);
  const model m = open_with(path, {s.device}, 1, heard.sink());
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) threads.emplace_back([&] { right += same_bits(logits_of(m, 300, 5), want); });
  for (std::thread& t : threads) t.join();
  CHECK(right == 6);
  CHECK(heard.all().empty());
}

TEST_CASE("what a device's limits exclude stays on the CPU, and the rest does not", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  // Packed, the output head has more than 40000 bytes, as have gate, up and down: 256 x 128.
  const simulated s = simulate_with("xdna-sim", {}, [](flywheel_device_caps& c) { c.memory_bytes = 20000; }, {});
  const model m = open_with(path, {s.device});
  CHECK(same_bits(logits_of(m, 9, 4), logits_of(open_with(path, {}), 9, 4)));
  CHECK(s.npu->report().submissions == 5 * 2 * 2);  // five passes, two layers: q/k/v and the output of attention
}

TEST_CASE("a device that is null is an error", "[devices]") {
  const temp_folder folder;
  const auto opened = model::open(npu_model(folder, dtype::q8_channel), {{}, {}, {nullptr}});
  REQUIRE(!opened);
  CHECK(opened.error().code == errc::invalid_argument);
}

TEST_CASE("a lost device's work goes to the next device before the CPU", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const std::vector<float> want = logits_of(open_with(path, {}), 9, 4);
  const simulated first = simulate("hexagon-sim"), second = simulate("xdna-sim");
  const model m = open_with(path, {first.device, second.device});
  CHECK(same_bits(logits_of(m, 9, 4), want));
  CHECK(second.npu->report().submissions == 0);
  first.npu->lose();
  CHECK(same_bits(logits_of(m, 9, 4), want));
  CHECK(second.npu->report().submissions > 0);
  second.npu->lose();
  CHECK(same_bits(logits_of(m, 9, 4), want));
}

TEST_CASE("a device that is lost before loading leaves all to the CPU", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const simulated s = simulate("xdna-sim");
  s.npu->lose();
  CHECK(same_bits(logits_of(open_with(path, {s.device}), 9, 4), logits_of(open_with(path, {}), 9, 4)));
}

TEST_CASE("a thousand tokens with random faults are the same tokens", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  constexpr int rounds = 10, steps = 100;
  const std::vector<float> want = logits_of(open_with(path, {}), 30, steps);
  for (const char* profile : profiles) {
    INFO(profile);
    std::uint64_t faults = 0;
    for (int round = 0; round < rounds; ++round) {
      messages heard;
      device::accelerator_options with;
      with.log = heard.sink();
      with.timeout = std::chrono::milliseconds(20);
      with.blob_cache = folder / "blobs";
      simulated s = simulate(profile, "faults=all,fault_rate=0.002,delay_us=50,seed=" + std::to_string(round), with);
      {
        const model m = open_with(path, {s.device}, 2, heard.sink());
        CHECK(same_bits(logits_of(m, 30, steps), want));
      }
      s.device.reset();
      const auto report = s.npu->report();
      faults += report.faults;
      INFO(heard.all());
      CHECK(heard.size() >= report.faults);  // each is heard of, once; and that the device is lost, if it is
      // On a busy machine, submissions may be late without a fault.
      CHECK(heard.size() - heard.with("timed out") <= report.faults + heard.with("other devices do its work"));
      CHECK(report.buffers == 0);  // and nothing leaks
      CHECK(report.executables == 0);
      CHECK(report.fences == 0);
    }
    CHECK(faults > 0);
  }
}

TEST_CASE("a model on a device can be cancelled and goes on", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const simulated s = simulate("xdna-sim", "delay_us=2000");
  const model m = open_with(path, {s.device});
  session run = m.new_session().value();
  std::stop_source stop;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    stop.request_stop();
  });
  const auto done = run.prefill(ids_of(300), {{}, stop.get_token()});
  later.join();
  REQUIRE(!done);
  CHECK(done.error().code == errc::cancelled);
  run.prefill(ids_of(300)).value();
  CHECK(std::memcmp(run.logits().data(), logits_of(open_with(path, {}), 300, 0).data(), run.logits().size_bytes()) ==
        0);
}

TEST_CASE("a submission that never ends is left behind when the caller stops, and does not block those after it",
          "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  device::accelerator_options with;
  with.timeout = std::chrono::milliseconds(200);
  with.retries = 1;
  simulated s = simulate_with(
      "xdna-sim", "faults=timeout,fault_rate=1", [](flywheel_device_caps& c) { c.max_in_flight = 1; }, with);
  {
    const model m = open_with(path, {s.device});
    session run = m.new_session().value();
    std::stop_source stop;
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      stop.request_stop();
    });
    const auto before = std::chrono::steady_clock::now();
    const auto done = run.prefill(ids_of(9), {{}, stop.get_token()});
    const auto took = std::chrono::steady_clock::now() - before;
    later.join();
    REQUIRE(!done);
    CHECK(done.error().code == errc::cancelled);
    CHECK(took < std::chrono::milliseconds(200) * 2);
    run.prefill(ids_of(9)).value();
    CHECK(std::memcmp(run.logits().data(), logits_of(open_with(path, {}), 9, 0).data(), run.logits().size_bytes()) ==
          0);
  }
  s.device.reset();
  CHECK(s.npu->report().buffers == 0);
  CHECK(s.npu->report().fences == 0);
}

TEST_CASE("sessions on several threads share a device", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const std::vector<float> want = logits_of(open_with(path, {}), 20, 10);
  const simulated s = simulate("hexagon-sim", "delay_us=100");
  const model m = open_with(path, {s.device}, 1);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back([&] { right += same_bits(logits_of(m, 20, 10), want); });
  for (std::thread& t : threads) t.join();
  CHECK(right == 4);
}

TEST_CASE("programs are compiled once and kept on disk", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  const std::vector<float> want = logits_of(open_with(path, {}), 40, 2);
  device::accelerator_options with;
  with.blob_cache = folder / "blobs";
  const auto compilations = [&](std::string_view options = {}) {
    const simulated s = simulate("xdna-sim", options, with);
    CHECK(same_bits(logits_of(open_with(path, {s.device}), 40, 2), want));
    return s.npu->report().compilations;
  };
  const auto blobs = [&] {
    std::vector<std::filesystem::path> names;
    for (const auto& entry : std::filesystem::directory_iterator(with.blob_cache)) names.push_back(entry.path());
    std::sort(names.begin(), names.end());
    return names;
  };
  const std::uint64_t all = compilations();
  CHECK(all == 5 * 4);  // kinds of products x buckets: equal layers share programs
  CHECK(blobs().size() == all);
  CHECK(compilations() == 0);

  // Damaged, cut off, empty, and of another device's making: compiled again, and written again.
  for (int damage = 0; damage < 4; ++damage) {
    INFO(damage);
    const std::filesystem::path name = blobs()[static_cast<std::size_t>(damage)];
    const auto size = std::filesystem::file_size(name);
    if (damage == 0) {
      std::fstream file(name, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(size) - 3);
      file.put('\x55');
    } else if (damage == 1) {
      std::filesystem::resize_file(name, size / 2);
    } else if (damage == 2) {
      std::filesystem::resize_file(name, 0);
    } else {
      std::filesystem::copy_file(blobs()[0], name, std::filesystem::copy_options::overwrite_existing);
    }
    CHECK(compilations() == 1);
    CHECK(compilations() == 0);
  }
  CHECK(compilations("scratch=400000") > 0);  // another device: other programs

  with.blob_cache_bytes = 1;  // smaller than any blob: none is kept
  with.blob_cache = folder / "none";
  CHECK(compilations() == all);
  CHECK(compilations() == all);

  with.blob_cache_bytes = 256 << 20;
  with.blob_cache = folder / "file";  // no folder can be made there
  std::ofstream(folder / "file") << "here";
  CHECK(compilations() == all);

  // Several processes at once: here threads, each with a cache of its own over one folder.
  with.blob_cache = folder / "shared";
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      const simulated s = simulate("xdna-sim", {}, with);
      right += same_bits(logits_of(open_with(path, {s.device}, 1), 40, 2), want);
    });
  for (std::thread& t : threads) t.join();
  CHECK(right == 4);
  CHECK(compilations() == 0);
  for (const auto& name : blobs()) CHECK(name.extension() == ".blob");
}

TEST_CASE("the blob cache forgets what was not used for longest", "[devices]") {
  const temp_folder folder;
  const auto path = npu_model(folder, dtype::q8_channel);
  device::accelerator_options with;
  with.blob_cache = folder / "blobs";
  const simulated s = simulate("xdna-sim", {}, with);
  (void)open_with(path, {s.device});
  std::uint64_t total = 0;
  for (const auto& entry : std::filesystem::directory_iterator(with.blob_cache)) total += entry.file_size();
  with.blob_cache_bytes = total / 2;
  with.blob_cache = folder / "half";
  const simulated again = simulate("xdna-sim", {}, with);
  (void)open_with(path, {again.device});
  std::uint64_t kept = 0;
  for (const auto& entry : std::filesystem::directory_iterator(with.blob_cache)) kept += entry.file_size();
  CHECK(kept <= total / 2);
  CHECK(kept > 0);
}

TEST_CASE("tables that no device may have are refused and closed", "[devices]") {
  const auto npu = device::simulated_npu::create("xdna-sim").value();
  const auto refused = [&](auto&& change) {
    flywheel_device_table table = npu->table();
    change(table);
    const auto made = device::make_accelerator(table);
    REQUIRE(!made);
    return made.error();
  };
  CHECK(refused([](flywheel_device_table& t) { t.size = 16; }).code == errc::unsupported);
  CHECK(refused([](flywheel_device_table& t) { t.submit = nullptr; }).message.find("lacks functions") !=
        std::string::npos);
  CHECK(refused([](flywheel_device_table& t) {
          t.caps = [](flywheel_device*, flywheel_device_caps* out) -> flywheel_status {
            out->abi = 7;
            return FLYWHEEL_OK;
          };
        }).message.find("interface version 7") != std::string::npos);
  CHECK(refused([](flywheel_device_table& t) {
          t.caps = [](flywheel_device*, flywheel_device_caps*) -> flywheel_status { return FLYWHEEL_FAILED; };
        }).code == errc::device);
}
