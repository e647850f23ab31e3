// SmolLM3: llama without rotary positions in every fourth layer ("NoPE", Yang et al. 2025).
#pragma once

#include "model/reference/llama.hpp"

namespace flywheel::test::reference {

inline llama_settings smollm3_settings() {
  llama_settings s;
  s.unrotated_every = 4;
  return s;
}

}  // namespace flywheel::test::reference
