// inspect and dequantize: what is in a file.
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cli/process.hpp"
#include "flywheel/io/archive.hpp"
#include "support/data.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("inspect lists metadata, tensors, sizes and the footprint of a model") {
  temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(path, {.layers = 2, .weights = dtype::f16});
  const json j = flywheel_command({"inspect", path, "--json"}).parsed();
  CHECK(j.at("container") == "gguf");
  CHECK(j.at("version") == 3);
  CHECK(j.at("file_bytes") == std::filesystem::file_size(path));
  CHECK(j.at("metadata").at("general.architecture") == "llama");
  CHECK(j.at("metadata").at("llama.block_count") == 2);
  CHECK(j.at("metadata").at("tokenizer.ggml.tokens").at("length") == 320);
  CHECK(j.at("metadata").at("tokenizer.ggml.tokens").at("first").at(1) == "<s>");
  CHECK(j.at("tensors").size() == 20);
  const json& first = j.at("tensors").at(0);
  CHECK(first.at("name") == "token_embd.weight");
  CHECK(first.at("type") == "F16");
  CHECK(first.at("shape") == json({320, 32}));
  CHECK(first.at("bytes") == 320 * 32 * 2);
  std::int64_t bytes = 0;
  for (const json& t : j.at("types")) bytes += t.at("bytes").get<std::int64_t>();
  CHECK(bytes == j.at("tensor_bytes"));
  REQUIRE(j.contains("footprint"));
  const json& f = j.at("footprint");
  CHECK(f.at("total") ==
        f.at("weights").get<std::int64_t>() + f.at("kv").get<std::int64_t>() + f.at("arena").get<std::int64_t>());
  CHECK(f.at("weights") > 0);
  const json longer = flywheel_command({"inspect", path, "--json", "--ctx", "4096", "--no-tensors"}).parsed();
  CHECK(longer.at("footprint").at("kv") > f.at("kv"));
  CHECK(!longer.contains("tensors"));

  const json full = flywheel_command({"inspect", path, "--json", "--full"}).parsed();
  CHECK(full.at("metadata").at("tokenizer.ggml.tokens").size() == 320);
  const finished text = flywheel_command({"inspect", path});
  CHECK(text.code == 0);
  CHECK(text.out.find("blk.1.ffn_down.weight") != std::string::npos);
  CHECK(text.out.find("320 in all") != std::string::npos);
  CHECK(text.out.find("Footprint") != std::string::npos);
}

TEST_CASE("inspect shows hostile names and numbers that JSON does not have") {
  temp_folder folder;
  const std::string path = (folder / "odd.gguf").string();
  write_tiny_model(path, {}, [](io::metadata& meta, std::vector<tiny_tensor>&) {
    meta.set("note", std::string("clear \x1b[2J and \xFF bytes\nsecond line"));
    meta.set("not.a.number", std::nanf(""));
  });
  const json j = flywheel_command({"inspect", path, "--json"}).parsed();
  CHECK(j.at("metadata").at("not.a.number") == "nan");
  CHECK(j.at("metadata").at("note") == "clear \x1b[2J and \xEF\xBF\xBD bytes\nsecond line");
  const finished text = flywheel_command({"inspect", path});
  CHECK(text.code == 0);
  CHECK(text.out.find('\x1b') == std::string::npos);
  CHECK(text.out.find("clear \\x1b[2J and \xEF\xBF\xBD bytes\\nsecond line") != std::string::npos);
}

TEST_CASE("inspect tells why a model cannot run") {
  temp_folder folder;
  const std::string path = (folder / "other.gguf").string();
  write_tiny_model(path, {.architecture = "flux"});
  const json j = flywheel_command({"inspect", path, "--json"}).parsed();
  CHECK(!j.contains("footprint"));
  CHECK(j.at("problem").get<std::string>().find("flux") != std::string::npos);
}

TEST_CASE("inspect reads safetensors") {
  temp_folder folder;
  const std::string path = (folder / "w.safetensors").string();
  io::metadata meta;
  meta.set("format", std::string("pt"));
  const std::vector<tiny_tensor> tensors = {{{"w", dtype::f32, {2, 3}, 0}, {1, 2, 3, 4, 5, 6}}};
  write_tensors(path, meta, tensors, io::container::safetensors);
  const json j = flywheel_command({"inspect", path, "--json"}).parsed();
  CHECK(j.at("container") == "safetensors");
  CHECK(j.at("tensors").at(0).at("shape") == json({2, 3}));
  CHECK(j.at("metadata").at("format") == "pt");
  CHECK(!j.contains("footprint"));
}

TEST_CASE("files that are no models are refused in one line") {
  temp_folder folder;
  spill(folder / "empty.gguf", "");
  spill(folder / "text.gguf", "This is not a model at all, it is a sentence.");
  for (const char* name : {"empty.gguf", "text.gguf"}) {
    const std::string path = (folder / name).string();
    check_failure(flywheel_command({"inspect", path}), 1, name);
    check_failure(flywheel_command({"run", path, "-p", "a"}), 1, name);
    check_failure(flywheel_command({"tokenize", path, "--text", "a"}), 1, name);
  }
  check_failure(flywheel_command({"inspect", folder.path().string()}), 1, folder.path().string());
}

TEST_CASE("dequantize writes the values row by row") {
  temp_folder folder;
  const std::string path = (folder / "w.gguf").string();
  std::vector<float> values(3 * 64);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) - 90.5F;
  const std::vector<tiny_tensor> tensors = {{{"plain", dtype::f32, {3, 64}, 0}, values},
                                            {{"half", dtype::f16, {3, 64}, 0}, values},
                                            {{"eight", dtype::q8_0, {3, 64}, 0}, values}};
  write_tensors(path, {}, tensors);
  for (const tiny_tensor& t : tensors) {
    INFO(t.plan.name);
    const std::string out = (folder / (t.plan.name + ".f32")).string();
    const json j = flywheel_command({"dequantize", path, t.plan.name, "--out", out, "--json"}).parsed();
    CHECK(j.at("shape") == json({3, 64}));
    const std::vector<std::byte> bytes = read_bytes(out);
    REQUIRE(bytes.size() == values.size() * 4);
    std::vector<float> got(values.size());
    std::memcpy(got.data(), bytes.data(), bytes.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float allowed = t.plan.type == dtype::q8_0 ? 0.4F : 0;  // half of 1/127 of the largest; halves are exact
      CHECK(std::abs(got[i] - values[i]) <= allowed);
    }
  }
  check_failure(flywheel_command({"dequantize", path, "missing", "--out", (folder / "x").string()}), 1,
                "no tensor 'missing'");
  CHECK(!std::filesystem::exists(folder / "x"));
  check_failure(flywheel_command({"dequantize", path, "plain", "--out", (folder / "no/such/folder/x").string()}), 1,
                "no/such/folder");
  check_failure(flywheel_command({"dequantize", path, "plain", "--out", folder.path().string()}), 1,
                folder.path().string());
}

TEST_CASE("an output that is no plain file is written in place, a link stays a link") {
  temp_folder folder;
  const std::string path = (folder / "w.gguf").string();
  write_tensors(path, {}, std::vector<tiny_tensor>{{{"w", dtype::f32, {2}, 0}, {1, 2}}});
  const auto write_to = [&](const std::string& out) {
    return flywheel_command({"dequantize", path, "w", "--out", out});
  };
  const std::string pipe = (folder / "pipe").string();
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const int reader = ::open(pipe.c_str(), O_RDWR | O_NONBLOCK);
  REQUIRE(reader >= 0);
  CHECK(write_to(pipe).code == 0);
  CHECK(std::filesystem::is_fifo(pipe));
  char bytes[16];
  CHECK(::read(reader, bytes, sizeof bytes) == 8);
  ::close(reader);

  const finished piped = write_to("/proc/self/fd/1");  // what /dev/stdout leads to; here a plain file
  CHECK(piped.code == 0);
  CHECK(piped.out.size() == 8);

  std::filesystem::create_symlink("target", folder / "link");
  spill(folder / "target", "old");
  CHECK(write_to((folder / "link").string()).code == 0);
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(std::filesystem::file_size(folder / "target") == 8);
}

TEST_CASE("a disk that is full while a tensor is written is noticed") {
  if (!std::filesystem::exists("/dev/full")) return;
  temp_folder folder;
  const std::string path = (folder / "w.gguf").string();
  write_tensors(path, {}, std::vector<tiny_tensor>{{{"w", dtype::f32, {2}, 0}, {1, 2}}});
  const std::string shell = std::string(FLYWHEEL_CLI) + " dequantize " + path +
                            " w --out /proc/self/fd/1 > /dev/full 2> " + (folder / "err").string();
  const int status = std::system(shell.c_str());
  CHECK(WEXITSTATUS(status) == 1);
  CHECK(slurp(folder / "err").find("No space left") != std::string::npos);
}
