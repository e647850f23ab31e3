// flywheel-device-conformance: the skeleton and the simulators conform, and each broken device is caught by a message
// that names its fault.
#include <string>
#include <vector>

#include "cli/process.hpp"

using namespace flywheel::test;

namespace {

/// The groups that the checks are of, which takes less time than all of them.
finished check_groups(const std::string& device, const std::string& groups, const std::string& timeout = "2") {
  return process({device, "--quick", "--json", "--only", groups, "--timeout", timeout}).wait();
}

finished check_device(const std::string& device, const arguments& more = {"--timeout", "2"}) {
  arguments words = {device, "--quick", "--json"};
  words.insert(words.end(), more.begin(), more.end());
  return process(words).wait();
}

json report_of(const finished& f, int code) {
  INFO("stdout: " << f.out << "\nstderr: " << f.err);
  REQUIRE(f.code == code);
  return json::parse(f.out);
}

const std::string broken = KIT_BROKEN, skeleton = KIT_SKELETON;

void check_conforms(const std::string& device) {
  const json r = report_of(check_device(device), 0);
  CHECK(r.at("conforms") == true);
  CHECK(r.at("failed") == 0);
  CHECK(r.at("passed").get<int>() > 30);
  CHECK(r.at("caps").at("weight_formats").size() > 0);
  CHECK(!r.at("fingerprint").get<std::string>().empty());
  CHECK(r.at("throughput").size() > 0);
}

struct expectation {
  std::string device, check, message;
  [[nodiscard]] std::string group() const {
    const std::string of = check.substr(0, check.find('.'));
    if (of == "pack") return "packing";
    if (of == "compile" || of == "load") return "programs";
    if (of == "table" || of == "caps" || of == "query") return "interface";
    return of;
  }
};

}  // namespace

TEST_CASE("the skeleton conforms, with any seed") {
  check_conforms(skeleton);
  check_conforms(skeleton + ":skeleton");
  CHECK(report_of(check_device(skeleton, {"--seed", "99"}), 0).at("seed") == 99);
}

TEST_CASE("the simulators conform, also when submissions overtake each other") {
  check_conforms("hexagon-sim");
  check_conforms("xdna-sim");
  check_conforms("xdna-sim?delay_us=200,seed=5");
}

TEST_CASE("a simulator that injects faults does not conform, and no fault ends the kit") {
  const json r = report_of(check_device("hexagon-sim?faults=all,fault_rate=0.2"), 1);
  CHECK(r.at("conforms") == false);
  CHECK(r.at("checks").size() > 30);
}

TEST_CASE("each broken device is caught by a check that names its fault") {
  const std::vector<expectation> all = {
      {"result-off-by-one-place", "results.rows", "row 0, column 0, expected"},
      {"result-off-by-one-place", "results.rows", "off by one in the last place"},
      {"output-overrun", "results.bounds", "output overrun: wrote 12 bytes beyond the output of operation 0"},
      {"input-changed", "results.bounds", "the device changed the codes of input 0, from byte 0"},
      {"code-off-by-one", "pack.unpack", "in row 0, column 0 of matmul"},
      {"code-off-by-one", "results.rows", "results are wrong in a matmul of 1 rows, n 96, k 512"},
      {"fence-forgotten", "fences.in_flight", "fence lost: wait does not know fence"},
      {"fence-shared", "fences.in_flight", "while an earlier submission with that fence has not been waited for"},
      {"fence-never-signalled", "fences.wait", "fence 3 was never signalled: wait timed out after 2 s"},
      {"packed-size-too-small", "pack.size", "pack wrote beyond packed_size"},
      {"packed-size-too-large", "pack.size", "pack wrote less than packed_size"},
      {"corrupt-blob-accepted", "load.damaged", "load accepted a corrupt blob, bit"},
      {"waits-ignored", "fences.order", "of a chain, where each waits for the fence of the one before"},
      {"huge-buffer-accepted", "memory.huge", "alloc of 4611686018427387904 bytes answered 'ok'"},
      {"crash-in-compile", "compile.deterministic", "the device crashed in check compile.deterministic, in compile"},
      {"exception-in-query", "query.formats", "query threw a C++ exception"},
      {"no-wait", "table.complete", "the table lacks wait"},
      {"strange-caps", "caps.sane", "caps.alignment is 48; it must be a power of two"},
  };
  for (const expectation& e : all) {
    INFO(e.device);
    const json r = report_of(check_groups(broken + ":" + e.device, e.group()), 1);
    CHECK(r.at("conforms") == false);
    bool found = false;
    for (const json& c : r.at("checks")) {
      if (c.at("id") != e.check) continue;
      INFO(c.dump());
      CHECK(c.at("result") == "failed");
      CHECK(c.at("message").get<std::string>().find(e.message) != std::string::npos);
      found = true;
    }
    CHECK(found);
  }
}

TEST_CASE("what a fault does not touch still passes") {
  // A crash ends one check, not those behind it, of its group or of others.
  const json r = report_of(check_device(broken + ":crash-in-compile"), 1);
  for (const json& c : r.at("checks")) {
    const std::string id = c.at("id");
    INFO(c.dump());
    if (id.rfind("caps.", 0) == 0 || id.rfind("pack.", 0) == 0 || id.rfind("memory.", 0) == 0)
      CHECK(c.at("result") == "passed");
    if (id.rfind("load.", 0) == 0) CHECK(c.at("result") == "failed");
  }
}

TEST_CASE("a wait that never returns is given up") {
  const json r = report_of(check_groups(broken + ":wait-without-end", "fences", "0.1"), 1);
  bool found = false;
  for (const json& c : r.at("checks"))
    found = found || c.at("message").get<std::string>().find(
                         "the device hangs in check fences.wait, in wait: nothing happened for") != std::string::npos;
  CHECK(found);
}

TEST_CASE("the report is a page for publication") {
  const temp_folder folder;
  const std::string path = (folder / "report.md").string();
  (void)report_of(check_device(skeleton, {"--report", path}), 0);
  const std::string text = slurp(path);
  for (const char* part : {"# Conformance of skeleton\n", "**Conforms**", "| tile m x n x k | 1 x 8 x 1 |",
                           "| `results.rows` |", "Measured through the interface on this host", "device ABI 1"}) {
    INFO(part);
    CHECK(text.find(part) != std::string::npos);
  }
  (void)report_of(check_device(broken + ":output-overrun", {"--report", path}), 1);
  CHECK(slurp(path).find("**Does not conform**") != std::string::npos);
}

TEST_CASE("wrong usage and what is no device") {
  const auto fails = [](const arguments& words, int code, const std::string& part) {
    const finished f = process(words).wait();
    INFO("stdout: " << f.out << "\nstderr: " << f.err);
    CHECK(f.code == code);
    CHECK(f.out.empty());
    CHECK(f.err.rfind("flywheel-device-conformance: error: ", 0) == 0);
    CHECK(f.err.find(part) != std::string::npos);
  };
  fails({}, 2, "DEVICE");
  fails({skeleton, "--no-such-option"}, 2, "--no-such-option");
  fails({"./no_such_file.so"}, 1, "there is no such plug-in");
  fails({skeleton + ":other"}, 1, "has no device 'other'; it has skeleton");
  fails({skeleton + "?speed=9"}, 1, "does not take the options 'speed=9'");
  fails({KIT_NO_PLUGIN}, 1, "exports no flywheel_device_open");
  fails({KIT_OTHER_ABI}, 1, "another ABI");
  const finished help = process({"--help"}).wait();
  CHECK(help.code == 0);
  CHECK(help.out.find("flywheel-device-conformance ./my_device.so --quick") != std::string::npos);
}
