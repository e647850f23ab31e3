// Runs every file of the given folders through a fuzz target. Sanitizers and the target's own checks decide; finding no
// file at all is a failure.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  std::size_t count = 0;
  for (int i = 1; i < argc; ++i) {
    std::vector<std::filesystem::path> files;
    for (const auto& item : std::filesystem::directory_iterator(argv[i]))
      if (item.is_regular_file()) files.push_back(item.path());
    std::sort(files.begin(), files.end());
    for (const auto& file : files) {
      std::ifstream in(file, std::ios::binary);
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      std::printf("%s\n", file.filename().string().c_str());
      std::fflush(stdout);  // says which one it was, should it end here
      // An exact heap block, so that reading past its end shows.
      const std::unique_ptr<std::uint8_t[]> bytes(new std::uint8_t[text.size()]);
      std::copy(text.begin(), text.end(), bytes.get());
      LLVMFuzzerTestOneInput(bytes.get(), text.size());
      ++count;
    }
  }
  std::printf("%zu inputs\n", count);
  return count > 0 ? 0 : 1;
}
