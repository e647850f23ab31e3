// The parts of `flywheel lora`.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace flywheel::cli {

/// What the subcommands have in common; each uses its part.
struct lora_args {
  std::string base, input, out;
  std::vector<std::string> adapters;  ///< "FILE" or "FILE:SCALE"
  std::string type, method = "search", how = "concatenate", pattern, name;
  std::int64_t rank = 0;
  std::optional<double> energy;
  double density = 0.5;
  std::uint64_t seed = 1;
  unsigned threads = 0;
  bool embeddings = false, json = false;
};

int lora_info(const lora_args& args);
int lora_convert(const lora_args& args);
int lora_merge(const lora_args& args, bool unmerge);
int lora_extract(const lora_args& args);
int lora_combine(const lora_args& args);

}  // namespace flywheel::cli
