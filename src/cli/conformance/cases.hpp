// Running reference cases: the tally, and one function per section of a conformance folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cli/output.hpp"
#include "cli/terminal.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::cli {

enum class outcome : std::uint8_t { passed, failed, skipped };

struct case_result {
  std::string section;
  std::string name;
  outcome how = outcome::passed;
  std::string why;
};

/// Collects results; tells a listener about each as it comes.
class tally {
 public:
  tally(std::string section, std::function<void(const case_result&)> each)
      : section_(std::move(section)), each_(std::move(each)) {}
  void pass(std::string name) { add(std::move(name), outcome::passed, {}); }
  void fail(std::string name, std::string why) { add(std::move(name), outcome::failed, std::move(why)); }
  void skip(std::string name, std::string why) { add(std::move(name), outcome::skipped, std::move(why)); }
  /// Passed if `good`.
  void check(std::string name, bool good, std::string why) {
    good ? pass(std::move(name)) : fail(std::move(name), std::move(why));
  }
  /// What this build does not support is skipped, everything else failed.
  void refused(std::string name, const error& e) {
    e.code == errc::unsupported ? skip(std::move(name), e.to_string()) : fail(std::move(name), e.to_string());
  }

 private:
  void add(std::string name, outcome how, std::string why) { each_({section_, std::move(name), how, std::move(why)}); }
  std::string section_;
  std::function<void(const case_result&)> each_;
};

/// What every section gets: its folder, the context to run in, Ctrl-C.
struct conformance_run {
  std::filesystem::path folder;
  flywheel::context context;
  std::stop_token stop;

  /// Throws errc::cancelled after Ctrl-C; called between cases.
  void check_stopped() const;
};

void run_formats(const conformance_run& run, tally& results);
void run_architectures(const conformance_run& run, tally& results);
void run_quantized(const conformance_run& run, tally& results);  ///< architectures/quantized
void run_tokenizers(const conformance_run& run, tally& results);
void run_chat(const conformance_run& run, tally& results);
void run_adapters(const conformance_run& run, tally& results);
void run_corrupt(const conformance_run& run, tally& results);

/// A JSON file; throws a failure naming it.
[[nodiscard]] json read_json(const std::filesystem::path& path);
/// A tensor of a safetensors file as f32; throws.
[[nodiscard]] std::vector<float> read_floats(const io::archive& file, std::string_view name);
/// Standard deviation of the whole list, 1 when it is 0.
[[nodiscard]] double deviation(std::span<const float> values);
/// Largest |a - b|, infinity for NaN or different lengths.
[[nodiscard]] double largest_difference(std::span<const float> a, std::span<const float> b);
/// "1.2e-05"
[[nodiscard]] std::string scientific(double value);

}  // namespace flywheel::cli
