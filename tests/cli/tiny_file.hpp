// A tiny model in a file of its own.
#pragma once

#include <string>

#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace flywheel::test {

struct tiny_file {
  temp_folder folder;
  std::string path = (folder / "tiny.gguf").string();
  explicit tiny_file(const tiny_model& m = {}) { write_tiny_model(path, m); }
};

}  // namespace flywheel::test
