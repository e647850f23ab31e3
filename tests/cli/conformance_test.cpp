// The conformance command on folders made here, good and bad, and on the shared data.
#include <cstring>
#include <string>
#include <vector>

#include "cli/process.hpp"
#include "support/data.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::string last_line(const std::string& text) {
  const std::size_t end = text.find_last_not_of('\n');
  const std::size_t begin = text.find_last_of('\n', end);
  return text.substr(begin + 1, end - begin);
}

/// A conformance folder whose references are this build's own results; `wrong` damages one of each kind.
void make_folder(const temp_folder& root, bool wrong) {
  const auto folder = [&](const std::string& name) {
    std::filesystem::create_directories(root / name);
    return root.path() / name;
  };
  // formats
  const auto formats = folder("formats");
  const std::vector<float> values = {1, 2, 3, wrong ? 4.5F : 4};
  write_tensors(formats / "f32.gguf", {}, std::vector<tiny_tensor>{{{"w", dtype::f32, {2, 2}, 0}, {1, 2, 3, 4}}});
  write_tensors(formats / "f32.safetensors", {}, std::vector<tiny_tensor>{{{"dequant", dtype::f32, {2, 2}, 0}, values}},
                io::container::safetensors);
  spill(formats / "index.json",
        json{{"cases",
              {{{"type", "F32"}, {"rows", 2}, {"cols", 2}, {"gguf", "f32.gguf"}, {"expected", "f32.safetensors"}}}}}
            .dump());
  // tokenizers
  const auto tokenizers = folder("tokenizers");
  write_tiny_model(tokenizers / "tiny.gguf");
  json ids = flywheel_command({"tokenize", (tokenizers / "tiny.gguf").string(), "--text", "hello", "--json"})
                 .parsed()
                 .at("ids");
  if (wrong) ids.push_back(5);
  spill(tokenizers / "tiny.json",
        json{{"vocabulary", "tiny.gguf"},
             {"cases", {{{"text", "hello"}, {"ids", ids}, {"detokenized", wrong ? "hullo" : "hello"}}}}}
            .dump());
  // architectures
  const auto architectures = folder("architectures");
  const std::string model = (architectures / "tiny.gguf").string();
  write_tiny_model(model, {.layers = 2});
  write_tiny_model(architectures / "other.gguf", {.architecture = "flux"});
  const std::string out = (root / "rows").string();
  (void)flywheel_command({"logits", model, "--ids", "1,300,301", "--every", "8", "--kv-type", "f32", "--out", out})
      .parsed();
  const std::vector<std::byte> bytes = read_bytes(out);
  std::vector<float> rows(bytes.size() / 4);
  std::memcpy(rows.data(), bytes.data(), bytes.size());
  if (wrong) rows[7] += 1;
  write_tensors(architectures / "tiny.safetensors", {},
                std::vector<tiny_tensor>{{{"a.logits_f64", dtype::f32, {2, 320}, 0}, rows}},
                io::container::safetensors);
  json greedy = flywheel_command({"run", model, "--ids", "1,300,301", "-n", "4", "--greedy", "--ignore-eos", "--json"})
                    .parsed()
                    .at("ids");
  if (wrong) greedy[0] = greedy[0].get<int>() + 1;
  const json tolerance = {{"f32_vs_f64", 1e-3}, {"f16_kv_or_activations_vs_f64", 2e-2}};
  const json one = {{"name", "tiny"},
                    {"gguf", "tiny.gguf"},
                    {"expected", "tiny.safetensors"},
                    {"context", 64},
                    {"tolerance", tolerance},
                    {"sequences", {{"a", {1, 300, 301}}}},
                    {"greedy", {{"a", {{"ids", greedy}, {"margins", {9, 9, 9, 9}}}}}}};
  json other = one;
  other["name"] = "flux";
  other["gguf"] = "other.gguf";
  spill(architectures / "index.json", json{{"models", {one, other}}}.dump());
  // corrupt
  const auto corrupt = folder("corrupt");
  write_tiny_model(corrupt / "good.gguf");
  spill(corrupt / "bad.gguf", "GGUFbut no more");
  spill(corrupt / "notes.jsonl",
        json{{"file", "good.gguf"}, {"expect", wrong ? "error" : "ok"}, {"wrong", "nothing"}}.dump() + "\n" +
            json{{"file", "bad.gguf"}, {"expect", wrong ? "ok" : "error"}, {"wrong", "cut off"}}.dump() + "\n");
  // chat
  const auto chat = folder("chat");
  spill(chat / "x.json", json{{"template", "x.jinja"}, {"cases", {{{"name", "one"}}}}}.dump());
}

}  // namespace

TEST_CASE("conformance passes a folder that is right and names what is skipped") {
  const temp_folder root;
  make_folder(root, false);
  const finished f = flywheel_command({"conformance", root.path().string()});
  INFO(f.out << f.err);
  CHECK(f.code == 0);
  CHECK(f.err.empty());
  // formats 1, tokenizers 2, architectures f32 + f16 + greedy, corrupt 2; skipped: the architecture, a chat case
  CHECK(last_line(f.out) == "8 passed, 0 failed, 2 skipped");
  CHECK(f.out.find("skip architectures/flux") != std::string::npos);
  CHECK(f.out.find("skip chat/x/one") != std::string::npos);
  const json j = flywheel_command({"conformance", root.path().string(), "formats", "corrupt", "--json"}).parsed();
  CHECK(j.at("passed") == 3);
  CHECK(j.at("sections").size() == 2);
}

TEST_CASE("conformance notices every kind of wrong result") {
  const temp_folder root;
  make_folder(root, true);
  const finished f = flywheel_command({"conformance", root.path().string()});
  INFO(f.out << f.err);
  CHECK(f.code == 1);
  CHECK(last_line(f.out) == "0 passed, 8 failed, 2 skipped");
  for (const char* name :
       {"formats/f32.gguf", "tokenizers/tiny#1", "tokenizers/tiny#1.text", "architectures/tiny.a",
        "architectures/tiny.a.f16", "architectures/tiny.greedy.a", "corrupt/good.gguf", "corrupt/bad.gguf"})
    CHECK(f.out.find(std::string("FAIL ") + name + ": ") != std::string::npos);
}

TEST_CASE("conformance refuses folders that hold nothing to check") {
  const temp_folder root;
  check_failure(flywheel_command({"conformance", root.path().string()}), 1, "none of the sections");
  check_failure(flywheel_command({"conformance", "/no/such/folder"}), 1, "/no/such/folder");
}

TEST_CASE("this build agrees with the shared reference results") {
  FLYWHEEL_REQUIRE_SHARED(folder, "conformance");
  const finished f = flywheel_command({"conformance", folder.string()});
  INFO(f.out << f.err);
  CHECK(f.code == 0);
  CHECK(f.out.find(" 0 failed") != std::string::npos);
}
