// Qwen3: llama with per-head norms of queries and keys and split-half rotary pairs. Its embedding models give the last
// token's hidden state.
#pragma once

#include "model/reference/llama.hpp"

namespace flywheel::test::reference {

inline llama_settings qwen3_settings() {
  llama_settings s;
  s.pairs = pairs::halves;
  return s;
}

}  // namespace flywheel::test::reference
