// corrupt/: malformed files are refused or safe, quickly and without taking memory.
#include <ctime>
#include <fstream>
#include <optional>
#include <sstream>

#include "cli/conformance/cases.hpp"
#include "flywheel/model/model.hpp"

namespace flywheel::cli {
namespace {

constexpr double seconds_allowed = 1;  // of processor time: other programs do not count
constexpr std::int64_t bytes_allowed = std::int64_t{64} << 20;

/// A line such as "VmHWM:   1234 kB" of /proc/self/status, in bytes; -1 where there is none.
std::int64_t process_bytes(std::string_view key) {
  std::ifstream in("/proc/self/status");
  std::string line;
  while (std::getline(in, line))
    if (line.starts_with(key)) return std::atoll(line.c_str() + key.size()) * 1024;
  return -1;
}

/// Makes the peak of resident memory start anew; false where the system does not let us.
bool reset_peak() {
  std::ofstream out("/proc/self/clear_refs");
  out << 5 << std::flush;
  return out.good();
}

/// Opens the file as far as a program would: the archive and, for GGUF, the model and a short run.
result<void> load(const conformance_run& run, const std::filesystem::path& path, bool as_model) {
  auto file = io::archive::open(path);
  if (!file) return file.error();
  if (!as_model) return {};
  auto loaded = model::open(*file, {run.context, {}});
  if (!loaded) return loaded.error();
  auto sequence = loaded->new_session();
  if (!sequence) return sequence.error();
  const token_id ids[] = {1, 2, 3};
  return sequence->prefill(ids);
}

void run_case(const conformance_run& run, const json& c, tally& results) {
  const auto name = c.at("file").get<std::string>();
  const auto expect = c.at("expect").get<std::string>();
  const bool measurable = reset_peak();
  const std::int64_t before = process_bytes("VmRSS:");
  const std::clock_t start = std::clock();
  const auto loaded = load(run, run.folder / name, name.ends_with(".gguf"));
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  const std::int64_t peak = process_bytes("VmHWM:");
  const std::string what = c.value("wrong", std::string());

  if (expect == "ok" && !loaded) return results.fail(name, "must load: " + loaded.error().to_string());
  if (expect == "error" && loaded) return results.fail(name, "was accepted although " + what);
  if (!loaded && loaded.error().message.size() < 10) return results.fail(name, "the error says too little");
  if (!loaded && loaded.error().code == errc::out_of_memory)
    return results.fail(name, "tried to allocate what the file asked for: " + what);
  if (seconds > seconds_allowed) return results.fail(name, "took " + decimal(seconds, 2) + " s");
  if (measurable && before >= 0 && peak >= 0 && peak - before > bytes_allowed)
    return results.fail(name, "took " + human_bytes(static_cast<std::uint64_t>(peak - before)) + " of memory");
  results.pass(name);
}

}  // namespace

void run_corrupt(const conformance_run& run, tally& results) {
  std::istringstream lines(read_file(run.folder / "notes.jsonl"));
  std::string line;
  while (std::getline(lines, line)) {
    run.check_stopped();
    if (line.empty()) continue;
    const json c = json::parse(line, nullptr, false);
    if (!c.is_object()) fail(errc::malformed, (run.folder / "notes.jsonl").string(), "holds a line that is not JSON");
    run_case(run, c, results);
  }
}

}  // namespace flywheel::cli
