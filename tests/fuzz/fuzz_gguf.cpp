// Any bytes as a GGUF file.
#include "fuzz/walk_archive.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  flywheel::test::open_and_walk(data, size);
  return 0;
}
