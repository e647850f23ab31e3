#include "flywheel/core/isa.hpp"

#include <cstdlib>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>

#include "src/core/cpu_features.hpp"
#include "support/catch.hpp"

using namespace flywheel;

namespace {

/// Sets or clears FLYWHEEL_ISA, and puts it back.
class environment {
 public:
  explicit environment(const char* value) {
    if (const char* old = std::getenv("FLYWHEEL_ISA")) before_ = old;
    set(value);
  }
  ~environment() { set(before_ ? before_->c_str() : nullptr); }

 private:
  static void set(const char* value) {
    if (value)
      ::setenv("FLYWHEEL_ISA", value, 1);
    else
      ::unsetenv("FLYWHEEL_ISA");
  }
  std::optional<std::string> before_;
};

}  // namespace

TEST_CASE("the best usable ISA is selected", "[isa]") {
  const environment unset(nullptr);
  const result<isa_report> report = detect_isa();
  REQUIRE(report);
  CHECK_FALSE(report->overridden);
  CHECK_FALSE(report->architecture.empty());
  REQUIRE_FALSE(report->clusters.empty());
  CHECK(report->clusters.front().name == "generic");
  CHECK(report->clusters.front().built);
  CHECK(report->clusters.front().detected);
  std::string_view best;
  std::set<std::string_view> names;
  for (const isa_status& row : report->clusters) {
    CHECK(names.insert(row.name).second);
    if (row.built && row.detected) best = row.name;
  }
  CHECK(report->selected == best);
}

TEST_CASE("every usable ISA can be forced by argument and by environment", "[isa]") {
  const environment unset(nullptr);
  const isa_report all = detect_isa().value();
  for (const isa_status& row : all.clusters) {
    CAPTURE(row.name);
    const result<isa_report> forced = detect_isa(row.name);
    const environment named(std::string(row.name).c_str());
    const result<isa_report> from_environment = detect_isa();
    if (row.built && row.detected) {
      REQUIRE(forced);
      CHECK(forced->selected == row.name);
      CHECK(forced->overridden);
      REQUIRE(from_environment);
      CHECK(from_environment->selected == row.name);
      CHECK(from_environment->overridden);
    } else {
      REQUIRE_FALSE(forced);
      CHECK(forced.error().code == errc::unsupported);
      CHECK(forced.error().message.find(row.name) != std::string::npos);
      REQUIRE_FALSE(from_environment);
      CHECK(from_environment.error().code == errc::unsupported);
    }
  }
}

TEST_CASE("the argument goes before the environment", "[isa]") {
  const environment named("no such thing");
  CHECK(detect_isa().error().code == errc::not_found);
  const result<isa_report> report = detect_isa("generic");
  REQUIRE(report);
  CHECK(report->selected == "generic");
  CHECK(report->overridden);
}

TEST_CASE("an empty environment variable is none", "[isa]") {
  const environment empty("");
  const result<isa_report> report = detect_isa();
  REQUIRE(report);
  CHECK_FALSE(report->overridden);
}

TEST_CASE("an unknown ISA is an error that lists the names", "[isa]") {
  const environment unset(nullptr);
  const error e = detect_isa("x86_avx9000").error();
  CHECK(e.code == errc::not_found);
  CHECK(e.message.find("x86_avx9000") != std::string::npos);
  CHECK(e.message.find("generic") != std::string::npos);
  CHECK(e.message.find(detect_isa()->selected) != std::string::npos);
  CHECK(detect_isa("GENERIC").error().code == errc::not_found);
}

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
TEST_CASE("detected features are those the kernel reports", "[isa]") {
  std::set<std::string> flags;
  std::ifstream file("/proc/cpuinfo");
  std::string vendor;
  [[maybe_unused]] unsigned family = 0;
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (line.rfind("vendor_id", 0) == 0) vendor = line.substr(line.find(':') + 2);
    if (line.rfind("cpu family", 0) == 0) family = static_cast<unsigned>(std::stoul(line.substr(line.find(':') + 1)));
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) flags.insert(word);
  }
  const cpu_features cpu = detect_cpu_features();
  const auto has = [&](const char* name) { return flags.count(name) > 0; };
#  if defined(__x86_64__)
  if (!has("sse2")) {
    WARN("skipped: /proc/cpuinfo does not describe this CPU");
    return;
  }
  CHECK((cpu.amd_family != 0) == (vendor == "AuthenticAMD"));
  if (vendor == "AuthenticAMD") CHECK(cpu.amd_family == family);
  CHECK(cpu.avx == has("avx"));
  CHECK(cpu.avx2 == has("avx2"));
  CHECK(cpu.fma == has("fma"));
  CHECK(cpu.f16c == has("f16c"));
  CHECK(cpu.bmi2 == has("bmi2"));
  CHECK(cpu.avxvnni == has("avx_vnni"));
  CHECK(cpu.avx512f == has("avx512f"));
  CHECK(cpu.avx512bw == has("avx512bw"));
  CHECK(cpu.avx512vl == has("avx512vl"));
  CHECK(cpu.avx512dq == has("avx512dq"));
  CHECK(cpu.avx512vbmi == has("avx512vbmi"));
  CHECK(cpu.avx512vnni == has("avx512_vnni"));
  CHECK(cpu.avx512bf16 == has("avx512_bf16"));
  CHECK(cpu.avx512fp16 == has("avx512_fp16"));
#  else
  if (!has("asimd")) {
    WARN("skipped: /proc/cpuinfo does not describe this CPU");
    return;
  }
  CHECK(cpu.dotprod == has("asimddp"));
  CHECK(cpu.fp16 == has("asimdhp"));
  CHECK(cpu.i8mm == has("i8mm"));
  CHECK(cpu.bf16 == has("bf16"));
  CHECK(cpu.sve == has("sve"));
#  endif
}
#endif
