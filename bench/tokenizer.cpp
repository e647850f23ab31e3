// How fast tokenizers load, encode and decode: bytes of text per second on one core.
//
//   bench-tokenizer                                        the shared vocabularies and text, where they lie beside the
//   project FLYWHEEL_BENCH_VOCAB=model.gguf FLYWHEEL_BENCH_TEXT=book.txt bench-tokenizer      your own; both take a
//   list, ':' between
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace {

using namespace flywheel;
namespace fs = std::filesystem;

struct input {
  std::string name;
  std::shared_ptr<const io::archive> file;
  text::tokenizer vocabulary;
};

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<fs::path> paths(const char* variable, std::vector<fs::path> otherwise) {
  std::vector<fs::path> found;
  if (const char* list = std::getenv(variable)) {
    otherwise.clear();
    std::string rest = list;
    while (!rest.empty()) {
      const std::size_t end = rest.find(':');
      otherwise.emplace_back(rest.substr(0, end));
      rest = end == std::string::npos ? std::string() : rest.substr(end + 1);
    }
  }
  for (const fs::path& p : otherwise)
    if (fs::exists(p)) found.push_back(p);
  return found;
}

void load(benchmark::State& state, const input& in) {
  for (auto _ : state) benchmark::DoNotOptimize(text::tokenizer::from_metadata(in.file->metadata()).value());
  state.counters["tokens"] = in.vocabulary.size();
}

void encode(benchmark::State& state, const input& in, const std::string& text) {
  std::size_t ids = 0;
  for (auto _ : state) ids = in.vocabulary.encode(text).value().size();
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * text.size()));
  state.counters["bytes_per_token"] = static_cast<double>(text.size()) / static_cast<double>(ids == 0 ? 1 : ids);
}

/// Chat messages are short: what a call costs beside the text.
void encode_short(benchmark::State& state, const input& in) {
  const std::string text = "The quick brown fox jumps over the lazy dog, doesn't it?\n";
  for (auto _ : state) benchmark::DoNotOptimize(in.vocabulary.encode(text).value());
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * text.size()));
}

void decode(benchmark::State& state, const input& in, const std::vector<token_id>& ids) {
  std::size_t bytes = 0;
  for (auto _ : state) bytes = in.vocabulary.decode(ids).value().size();
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const fs::path shared = fs::path(FLYWHEEL_SOURCE_DIR) / "../shared";
  const fs::path vocabularies = shared / "conformance/tokenizers";
  std::vector<input> inputs;
  for (const fs::path& p : paths("FLYWHEEL_BENCH_VOCAB", {vocabularies / "llama3.gguf", vocabularies / "qwen3.gguf",
                                                          vocabularies / "gpt-2.gguf", vocabularies / "llama-spm.gguf",
                                                          vocabularies / "bert-bge.gguf"})) {
    auto file = io::archive::open(p);
    auto made = file ? text::tokenizer::from_metadata(file->metadata()) : std::move(file).error();
    if (!made) {
      std::fprintf(stderr, "%s: %s\n", p.c_str(), made.error().to_string().c_str());
      return 1;
    }
    inputs.push_back({p.stem().string(), std::make_shared<io::archive>(*std::move(file)), *std::move(made)});
  }
  std::vector<std::pair<std::string, std::string>> texts;
  for (const fs::path& p : paths("FLYWHEEL_BENCH_TEXT", {shared / "family/text/general/train.txt"}))
    texts.emplace_back(p.parent_path().filename().string() + "/" + p.filename().string(), read(p));
  if (inputs.empty() || texts.empty()) {
    std::fprintf(stderr, "no vocabulary or no text: set FLYWHEEL_BENCH_VOCAB and FLYWHEEL_BENCH_TEXT to paths\n");
    return 1;
  }
  for (const input& in : inputs) {
    benchmark::RegisterBenchmark(("load/" + in.name).c_str(), load, in)->Unit(benchmark::kMillisecond);
    for (const auto& [name, text] : texts) {
      benchmark::RegisterBenchmark(("encode/" + in.name + "/" + name).c_str(), encode, in, text)
          ->Unit(benchmark::kMillisecond);
      benchmark::RegisterBenchmark(("decode/" + in.name + "/" + name).c_str(), decode, in,
                                   in.vocabulary.encode(text).value())
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RegisterBenchmark(("encode_short/" + in.name).c_str(), encode_short, in);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
