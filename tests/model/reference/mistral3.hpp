// Ministral 3: llama with YaRN whose magnitude correction cancels (yarn_log_multiplier 1), queries that grow with the
// logarithm of how often the position is beyond the original context (Llama 4's temperature), and optional experts.
#pragma once

#include "model/reference/llama.hpp"

namespace flywheel::test::reference {

inline llama_settings mistral3_settings(const model_file& m) {
  llama_settings s;
  s.temperature = m.number("attention.temperature_scale", 0);
  if (s.temperature != 0) s.temperature_length = m.number("rope.scaling.original_context_length");
  return s;
}

}  // namespace flywheel::test::reference
