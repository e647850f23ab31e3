#include "device_conformance/report.hpp"

#include <array>
#include <ctime>

#include "flywheel/version.hpp"

namespace flywheel::kit {
namespace {

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::gmtime_r(&now, &parts);
  std::array<char, 32> text = {};
  std::strftime(text.data(), text.size(), "%Y-%m-%d", &parts);
  return text.data();
}

/// A cell of a Markdown table.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : cli::printable(text)) {
    if (c == '|' || c == '\\' || c == '<') out += '\\';
    out += c;
  }
  return out;
}

std::string kind(const check& c) { return c.mandatory ? "mandatory" : "optional"; }

std::string limit(const json& bytes, const char* otherwise) {
  return bytes.get<std::uint64_t>() == 0 ? otherwise : cli::human_bytes(bytes.get<std::uint64_t>());
}

std::string format_name(const json& f) {
  const auto group = f.at("group").get<int>();
  return std::to_string(f.at("bits").get<int>()) + "-bit, a scale per " + (group == 0 ? "row" : std::to_string(group));
}

std::string caps_table(const json& c) {
  std::string out = "| property | value |\n|---|---|\n";
  const auto row = [&](const char* name, const std::string& value) {
    out += std::string("| ") + name + " | " + cell(value) + " |\n";
  };
  row("device", c.at("name"));
  row("vendor", c.at("vendor"));
  row("architecture", c.at("arch"));
  row("driver", c.at("driver"));
  const json& tile = c.at("tile");
  row("tile m x n x k", std::to_string(tile[0].get<int>()) + " x " + std::to_string(tile[1].get<int>()) + " x " +
                            std::to_string(tile[2].get<int>()));
  row("on-chip memory", limit(c.at("scratch_bytes"), "not said"));
  row("memory", limit(c.at("memory_bytes"), "the host's"));
  row("largest buffer", limit(c.at("max_buffer_bytes"), "no limit of its own"));
  row("alignment", std::to_string(c.at("alignment").get<int>()) + " B");
  row("queues", std::to_string(c.at("queues").get<unsigned>()));
  row("submissions in flight", std::to_string(c.at("max_in_flight").get<unsigned>()));
  row("shapes", c.at("static_shapes").get<bool>() ? "one number of rows per program" : "any number of rows");
  row("host memory without copies", c.at("unified_memory").get<bool>() ? "yes" : "no");
  std::string formats;
  for (const json& f : c.at("weight_formats")) formats += (formats.empty() ? "" : "; ") + format_name(f);
  row("weights", formats);
  return out;
}

}  // namespace

counts count(const settings& s, const run_result& r) {
  counts out;
  out.refused = !r.cannot_open.empty();
  for (const verdict& v : r.verdicts) {
    ++(v.result == outcome::passed ? out.passed : v.result == outcome::failed ? out.failed : out.skipped);
    if (v.result == outcome::failed && v.what->mandatory) out.refused = true;
  }
  out.whole = s.only.empty();
  out.conforms = out.whole && !out.refused;
  return out;
}

std::string json_report(const settings& s, const run_result& r) {
  const counts n = count(s, r);
  json checks = json::array();
  for (const verdict& v : r.verdicts)
    checks.push_back({{"id", v.what->id},
                      {"what", v.what->what},
                      {"kind", kind(*v.what)},
                      {"result", to_string(v.result)},
                      {"message", v.message},
                      {"seconds", v.seconds}});
  json out = {{"device", s.device}, {"kit", version},       {"date", today()},        {"seed", s.seed},
              {"quick", s.quick},   {"only", s.only},       {"conforms", n.conforms}, {"passed", n.passed},
              {"failed", n.failed}, {"skipped", n.skipped}, {"checks", checks}};
  out.update(r.facts);  // caps, fingerprint, throughput
  return cli::dump(out);
}

std::string markdown_report(const settings& s, const run_result& r) {
  const counts n = count(s, r);
  const std::string name = r.facts.contains("caps") ? r.facts["caps"].at("name").get<std::string>() : s.device;
  std::string out = "# Conformance of " + cell(name) + "\n\n";
  out += n.conforms  ? "**Conforms**: every mandatory check passed.\n\n"
         : n.refused ? "**Does not conform**: a mandatory check failed.\n\n"
                     : "**Not said to conform**: not all groups were checked.\n\n";
  out += "Checked on " + today() + " by flywheel-device-conformance " + std::string(version) + " (device ABI " +
         std::to_string(FLYWHEEL_DEVICE_ABI) + ", seed " + std::to_string(s.seed) + (s.quick ? ", --quick" : "") +
         "): " + std::to_string(n.passed) + " passed, " + std::to_string(n.failed) + " failed, " +
         std::to_string(n.skipped) + " not applicable.\n\n";
  if (r.facts.contains("caps")) out += "## Device\n\n" + caps_table(r.facts["caps"]);
  if (r.facts.contains("fingerprint"))
    out += "| fingerprint | " + cell(r.facts["fingerprint"].get<std::string>()) + " |\n";
  out += "\n## Checks\n\n| check | what | kind | result | seconds | |\n|---|---|---|---|---:|---|\n";
  for (const verdict& v : r.verdicts)
    out += "| `" + std::string(v.what->id) + "` | " + v.what->what + " | " + kind(*v.what) + " | " +
           to_string(v.result) + " | " + cli::decimal(v.seconds, 2) + " | " + cell(v.message) + " |\n";
  if (r.facts.contains("throughput") && !r.facts["throughput"].empty()) {
    out +=
        "\n## Throughput\n\nMeasured through the interface on this host: the shortest time from submit to the end of "
        "wait, with operands in place. A multiply-add is one multiplication and one addition.\n\n"
        "| rows | n | k | weights | microseconds | 10^9 multiply-adds/s |\n|---:|---:|---:|---|---:|---:|\n";
    for (const json& t : r.facts["throughput"])
      out += "| " + std::to_string(t.at("rows").get<int>()) + " | " + std::to_string(t.at("n").get<int>()) + " | " +
             std::to_string(t.at("k").get<int>()) + " | " + format_name(t) + " | " +
             cli::decimal(t.at("seconds").get<double>() * 1e6, 1) + " | " +
             cli::decimal(t.at("multiply_adds_per_second").get<double>() * 1e-9, 3) + " |\n";
  }
  return out;
}

}  // namespace flywheel::kit
