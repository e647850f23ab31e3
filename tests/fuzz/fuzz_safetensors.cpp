// Any bytes as the JSON header of a safetensors file. The length in front is written here, so that the fuzzer's changes
// reach the JSON; a first byte gives the number of data bytes.
#include <vector>

#include "fuzz/walk_archive.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t json = size - 1;
  std::vector<std::uint8_t> file(8 + json + data[0], 0xA5);
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::uint8_t>(json >> (8 * i));
  std::copy(data + 1, data + size, file.begin() + 8);
  flywheel::test::open_and_walk(file.data(), file.size());
  flywheel::test::open_and_walk(data, size);  // and as it is
  return 0;
}
