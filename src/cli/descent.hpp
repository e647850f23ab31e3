// Who the parents of a file are that a command is about to write.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/terminal.hpp"
#include "flywheel/adapt/lineage.hpp"
#include "flywheel/adapt/recipe.hpp"

namespace flywheel::cli {

struct parent_model {
  adapt::model_reference model;
  std::string role;  ///< As lineage has it.
};

/// The models of a recipe.
[[nodiscard]] std::vector<parent_model> parents_of(const adapt::recipe& what);
/// Their files and those of their adapters; relative paths start at `folder` where they are there.
[[nodiscard]] std::vector<std::string> files_of(const std::vector<parent_model>& parents,
                                                const std::filesystem::path& folder);
/// Sets name, path, role, version and parents, whose digests are computed with a progress bar. Throws.
void describe_descent(adapt::lineage& of, const std::string& out, const std::vector<parent_model>& parents,
                      const std::filesystem::path& folder, const interrupt& stop);

}  // namespace flywheel::cli
