// Granite 3: llama with four multipliers. The file's logit_scale divides.
#pragma once

#include "model/reference/llama.hpp"

namespace flywheel::test::reference {

inline llama_settings granite_settings(const model_file& m) {
  llama_settings s;
  s.embedding_scale = m.number("embedding_scale");
  s.residual_scale = m.number("residual_scale");
  s.attention_scale = m.number("attention.scale");
  s.logit_divisor = m.number("logit_scale");
  return s;
}

}  // namespace flywheel::test::reference
