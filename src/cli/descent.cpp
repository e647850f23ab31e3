#include "cli/descent.hpp"

#include <algorithm>

#include "cli/progress_bar.hpp"
#include "flywheel/version.hpp"

namespace flywheel::cli {
namespace {

std::filesystem::path place_of(const std::string& path, const std::filesystem::path& folder) {
  std::error_code failed;
  return std::filesystem::exists(folder / path, failed) ? folder / path : std::filesystem::path(path);
}

}  // namespace

std::vector<parent_model> parents_of(const adapt::recipe& what) {
  std::vector<parent_model> all;
  for (const adapt::model_reference& m : what.models()) all.push_back({m, what.base == m ? "base" : "model"});
  return all;
}

std::vector<std::string> files_of(const std::vector<parent_model>& parents, const std::filesystem::path& folder) {
  std::vector<std::string> all;
  for (const parent_model& p : parents)
    for (const std::string& path : {p.model.path, p.model.adapter})
      if (!path.empty()) all.push_back(place_of(path, folder).string());
  return all;
}

void describe_descent(adapt::lineage& of, const std::string& out, const std::vector<parent_model>& parents,
                      const std::filesystem::path& folder, const interrupt& stop) {
  of.name = std::filesystem::path(out).stem().string();
  of.path = out;
  of.role = "model";
  of.version = version;
  for (const parent_model& p : parents)
    for (const std::string* named : {&p.model.path, &p.model.adapter}) {
      const std::string& path = *named;
      if (path.empty()) continue;
      progress_bar bar("digest of " + std::filesystem::path(path).filename().string());
      of.parents.push_back(adapt::describe_parent(place_of(path, folder),
                                                  named == &p.model.adapter ? "adapter" : p.role,
                                                  {bar.callback(), stop.token()})
                               .value());
    }
}

}  // namespace flywheel::cli
