// open_device and devices_of_plugin.
#include <cstdint>
#include <string>

#include "flywheel/device/open.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;

namespace {

const context& shared_context() {
  static const context ctx = context::create().value();
  return ctx;
}

void check_refused(const std::string& spec, errc code, const std::string& part) {
  INFO(spec);
  const auto opened = device::open_device(spec, shared_context());
  REQUIRE(!opened);
  INFO(opened.error().to_string());
  CHECK(opened.error().code == code);
  CHECK(opened.error().to_string().find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("devices are opened by name and by plug-in") {
  CHECK(device::built_in_devices() == std::vector<std::string>{"cpu", "hexagon-sim", "xdna-sim"});
  const auto cpu = device::open_device("cpu", shared_context()).value();
  CHECK(cpu.device->caps().name == "cpu");
  CHECK(cpu.origin == "built in");

  for (const std::string& spec : {std::string(KIT_SKELETON), std::string(KIT_SKELETON) + ":skeleton"}) {
    auto opened = device::open_device(spec, shared_context()).value();
    CHECK(opened.device->caps().name == "skeleton");
    CHECK(opened.device->caps().weight_formats.size() == 4);
    CHECK(opened.origin == KIT_SKELETON);
    CHECK(opened.simulator == nullptr);
    // Twice at the same time; the first stays after the second.
    const auto again = device::open_device(spec, shared_context()).value();
    opened = {};
    CHECK(again.device->caps().name == "skeleton");
  }
}

TEST_CASE("a plug-in names its devices") {
  CHECK(device::devices_of_plugin(KIT_SKELETON).value() == std::vector<std::string>{"skeleton"});
  const auto broken = device::devices_of_plugin(KIT_BROKEN).value();
  CHECK(broken.size() > 10);
  CHECK(broken.front() == "result-off-by-one-place");
  CHECK(device::devices_of_plugin(KIT_NO_PLUGIN).error().code == errc::unsupported);
  CHECK(device::devices_of_plugin("no_such.so").error().code == errc::not_found);
}

TEST_CASE("what is no device is refused with a reason") {
  const flywheel::test::temp_folder folder;
  check_refused("gpu", errc::not_found, "known are cpu, hexagon-sim, xdna-sim");
  check_refused("cpu?fast=1", errc::invalid_argument, "takes no options");
  check_refused("./missing.so", errc::not_found, "no such plug-in");
  check_refused(folder.path().string(), errc::io, "no readable file");
  check_refused(flywheel::test::source_file("README.md").string(), errc::unsupported, "is no plug-in");
  check_refused(KIT_NO_PLUGIN, errc::unsupported, "exports no flywheel_device_open");
  check_refused(KIT_OTHER_ABI, errc::unsupported, "another ABI");
  check_refused(std::string(KIT_SKELETON) + ":big", errc::not_found, "it has skeleton");
  check_refused(std::string(KIT_SKELETON) + "?turbo=1", errc::invalid_argument, "turbo=1");
  check_refused(std::string(KIT_BROKEN) + ":no-wait", errc::unsupported, "lacks functions");
  check_refused(std::string(KIT_BROKEN) + ":strange-caps", errc::unsupported, "alignment");
}
