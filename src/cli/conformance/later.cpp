// chat/: cases of features that this version does not have; each is named, none is counted as passed.
#include <algorithm>

#include "cli/conformance/cases.hpp"

namespace flywheel::cli {

void run_chat(const conformance_run& run, tally& results) {
  std::vector<std::filesystem::path> files;
  for (const auto& item : std::filesystem::directory_iterator(run.folder))
    if (item.path().extension() == ".json") files.push_back(item.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    const json all = read_json(file);
    if (!all.is_object() || !all.contains("template")) continue;
    for (const json& c : all.at("cases"))
      results.skip(file.stem().string() + "/" + c.at("name").get<std::string>(), "chat templates are unsupported");
  }
}

}  // namespace flywheel::cli
