// formats/: every tensor type decodes to the expected values, bit for bit.
#include <cstring>

#include "cli/conformance/cases.hpp"
#include "flywheel/formats/formats.hpp"

namespace flywheel::cli {
namespace {

void run_case(const conformance_run& run, const json& c, const std::string& name, tally& results) {
  const io::archive file = io::archive::open(run.folder / name).value();
  const io::tensor_info* found = file.find("w");
  if (found == nullptr) return results.fail(name, "has no tensor w");
  const shape expected_shape{c.at("rows").get<std::int64_t>(), c.at("cols").get<std::int64_t>()};
  if (!(found->dims == expected_shape))
    return results.fail(name, "shape " + found->dims.to_string() + ", expected " + expected_shape.to_string());
  if (to_string(found->type) != c.at("type").get<std::string>())
    return results.fail(
        name, "type " + std::string(to_string(found->type)) + ", expected " + c.at("type").get<std::string>());
  std::vector<float> got(static_cast<std::size_t>(found->dims.elements()));
  if (const auto decoded = formats::decode(file.view(*found).value(), got); !decoded)
    return results.refused(name, decoded.error());
  const io::archive reference = io::archive::open(run.folder / c.at("expected").get<std::string>()).value();
  const std::vector<float> expected = read_floats(reference, "dequant");
  std::size_t different = 0;
  for (std::size_t i = 0; i < got.size() && i < expected.size(); ++i)
    different += std::memcmp(&got[i], &expected[i], sizeof(float)) != 0;
  results.check(name, got.size() == expected.size() && different == 0,
                std::to_string(different) + " of " + std::to_string(expected.size()) + " values differ");
}

}  // namespace

void run_formats(const conformance_run& run, tally& results) {
  const json index = read_json(run.folder / "index.json");
  for (const json& c : index.at("cases")) {
    run.check_stopped();
    const auto name = c.at("gguf").get<std::string>();
    try {
      run_case(run, c, name, results);
    } catch (const bad_result& e) {
      results.refused(name, e.why());
    }
  }
}

}  // namespace flywheel::cli
