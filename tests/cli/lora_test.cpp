// flywheel lora: every subcommand on tiny files, and what it refuses.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "support/tiny_adapter.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// A model, and two adapters for it.
struct tiny_family : tiny_file {
  std::string one = path_of("one.gguf"), two = path_of("two.gguf");
  tiny_family() {
    write_tiny_adapter(one, {.weights = {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}}, tiny_tensors({}));
    write_tiny_adapter(two, {.weights = {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}, .rank = 2, .seed = 9},
                       tiny_tensors({}));
  }
  [[nodiscard]] std::string path_of(const std::string& name) const { return (folder / name).string(); }
  [[nodiscard]] std::vector<float> logits(const std::string& model, const arguments& more = {}) const {
    arguments all = {"logits", model, "--ids", "1,300,301", "--out", path_of("rows")};
    all.insert(all.end(), more.begin(), more.end());
    (void)flywheel_command(all).parsed();
    const auto bytes = read_bytes(path_of("rows"));
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  void check_alike(const std::vector<float>& a, const std::vector<float>& b, float most = 1e-4F) const {
    REQUIRE(a.size() == b.size());
    float worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
    CHECK(worst < most);
  }
  [[nodiscard]] json lineage(const std::string& out) const {
    return json::parse(slurp(path_of(out + ".lineage.json")));
  }
};

}  // namespace

TEST_CASE("lora info shows what an adapter changes") {
  const tiny_family f;
  const json j = flywheel_command({"lora", "info", f.path, f.one, "--json"}).parsed();
  CHECK(j.at("name") == "tiny adapter");
  CHECK(j.at("alpha") == 8);
  REQUIRE(j.at("changes").size() == 2);
  CHECK(j.at("changes")[0].at("weight") == "blk.0.attn_q.weight");
  CHECK(j.at("changes")[0].at("rank") == 4);
  CHECK(j.at("changes")[0].at("factor") == 2);
  const finished shown = flywheel_command({"lora", "info", f.path, f.one});
  CHECK(shown.code == 0);
  CHECK(shown.out.find("ffn_down.weight") != std::string::npos);
}

TEST_CASE("lora convert goes both ways without a change") {
  const tiny_family f;
  const std::string folder = f.path_of("peft"), back = f.path_of("back.gguf"), again = f.path_of("peft2");
  CHECK(flywheel_command({"lora", "convert", f.path, f.one, folder, "--json"}).parsed().at("tensors") == 4);
  (void)flywheel_command({"lora", "convert", f.path, folder, back, "--json"}).parsed();
  (void)flywheel_command({"lora", "convert", f.path, back, again, "--json"}).parsed();
  for (const char* part : {"adapter_model.safetensors", "adapter_config.json"})
    CHECK((slurp(folder + "/" + part) == slurp(again + "/" + part)));  // not shown: bytes
  const auto wanted = f.logits(f.path, {"--adapter", f.one});
  CHECK(f.logits(f.path, {"--adapter", folder}) == wanted);
  CHECK(f.logits(f.path, {"--adapter", back}) == wanted);
  CHECK(f.lineage("back.gguf").at("method") == "lora convert");
  CHECK(flywheel_command({"inspect", back, "--json"}).out.find("general.base_model.1.name") != std::string::npos);
  check_failure(flywheel_command({"lora", "convert", f.path, f.one, folder}), 2, "is there already");
}

TEST_CASE("lora merge is the model with its adapters, and unmerge the model without") {
  const tiny_family f;
  const std::string out = f.path_of("merged.gguf"), back = f.path_of("back.gguf");
  const arguments adapters = {"--adapter", f.one + ":0.5", "--adapter", f.two};
  arguments merge = {"lora", "merge", f.path, out, "--json"}, unmerge = {"lora", "unmerge", out, back, "--json"};
  merge.insert(merge.end(), adapters.begin(), adapters.end());
  unmerge.insert(unmerge.end(), adapters.begin(), adapters.end());
  CHECK(flywheel_command(merge).parsed().at("changed") == 3);
  f.check_alike(f.logits(out), f.logits(f.path, adapters));
  (void)flywheel_command(unmerge).parsed();
  f.check_alike(f.logits(back), f.logits(f.path));
  const json child = f.lineage("merged.gguf");
  REQUIRE(child.at("parents").size() == 3);
  CHECK(child.at("parents")[0].at("role") == "base");
  CHECK(child.at("parents")[1].at("role") == "adapter");
  CHECK(child.at("parents")[1].at("sha256").get<std::string>().size() == 64);
  CHECK(child.at("parameters").at("scales") == json::array({0.5, 1.0}));
  CHECK(flywheel_command({"inspect", out, "--json"}).out.find("general.base_model.2.name") !=
        std::string::npos);

  (void)flywheel_command({"lora", "merge", f.path, f.path_of("q8.gguf"), "--adapter", f.one, "--type", "q8_0",
                          "--method", "rtn", "--json"})
      .parsed();
  f.check_alike(f.logits(f.path_of("q8.gguf")), f.logits(f.path, {"--adapter", f.one}), 0.2F);
}

TEST_CASE("lora extract finds an adapter again") {
  const tiny_family f;
  const std::string tuned = f.path_of("tuned.gguf");
  (void)flywheel_command({"lora", "merge", f.path, tuned, "--adapter", f.one, "--json"}).parsed();
  const auto extract = [&](const std::string& out, const arguments& more) {
    arguments all = {"lora", "extract", f.path, tuned, f.path_of(out), "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return flywheel_command(all).parsed();
  };
  const json whole = extract("found.gguf", {"--rank", "8", "--energy", "0.999999", "--type", "f32"});
  CHECK(whole.at("error") < 1e-3);
  for (const json& t : whole.at("tensors")) CHECK(t.at("rank") == 4);
  f.check_alike(f.logits(f.path, {"--adapter", f.path_of("found.gguf")}), f.logits(tuned), 1e-2F);
  const json less = extract("less", {"--rank", "1", "--tensors", "attn_q"});
  CHECK(less.at("tensors").size() == 1);
  CHECK(less.at("error") > 0.1);
  CHECK(f.lineage("less").at("parameters").at("rank") == 1);
  // The same for any number of threads.
  (void)extract("t1.gguf", {"-t", "1"});
  (void)extract("t3.gguf", {"-t", "3"});
  CHECK(read_bytes(f.path_of("t1.gguf")) == read_bytes(f.path_of("t3.gguf")));
}

TEST_CASE("lora combine makes one adapter of several") {
  const tiny_family f;
  const arguments adapters = {"--adapter", f.one + ":0.5", "--adapter", f.two + ":-1"};
  const auto wanted = f.logits(f.path, adapters);
  const auto combine = [&](const std::string& out, const arguments& more) {
    arguments all = {"lora", "combine", f.path, f.path_of(out), "--json"};
    all.insert(all.end(), adapters.begin(), adapters.end());
    all.insert(all.end(), more.begin(), more.end());
    return flywheel_command(all).parsed();
  };
  const json sum = combine("sum.gguf", {});
  CHECK(sum.at("tensors").size() == 3);
  f.check_alike(f.logits(f.path, {"--adapter", f.path_of("sum.gguf")}), wanted);
  CHECK(combine("svd", {"--how", "svd", "--rank", "6"}).at("error") < 1e-3);
  f.check_alike(f.logits(f.path, {"--adapter", f.path_of("svd")}), wanted, 1e-2F);
  CHECK(combine("ties.gguf", {"--how", "ties", "--density", "0.3"}).at("tensors").size() == 3);
  (void)combine("dare.gguf", {"--how", "dare_linear", "--seed", "4"});
  (void)combine("dare2.gguf", {"--how", "dare_linear", "--seed", "5"});
  CHECK(f.logits(f.path, {"--adapter", f.path_of("dare.gguf")}) !=
        f.logits(f.path, {"--adapter", f.path_of("dare2.gguf")}));
  CHECK(f.lineage("dare2.gguf").at("seed") == 5);
  arguments unequal = {"lora", "combine", f.path, f.path_of("no.gguf"), "--how", "linear"};
  unequal.insert(unequal.end(), adapters.begin(), adapters.end());
  check_failure(flywheel_command(unequal), 1, "rank");
  CHECK(!std::filesystem::exists(f.path_of("no.gguf")));
}

TEST_CASE("lora says what is wrong, and leaves nothing behind") {
  const tiny_family f;
  const std::string out = f.path_of("out.gguf");
  const auto merge = [&](const std::string& to, const arguments& more) {
    arguments all = {"lora", "merge", f.path, to};
    all.insert(all.end(), more.begin(), more.end());
    return flywheel_command(all);
  };
  check_failure(merge(out, {"--adapter", f.path_of("none.gguf")}), 1, "none.gguf");
  check_failure(merge(out, {"--adapter", f.path}), 1, "no adapter");
  check_failure(merge(out, {"--adapter", f.one + ":much"}), 2, "'much' is no scale");
  check_failure(merge(out, {"--adapter", f.one, "--type", "nothing"}), 2, "nothing");
  check_failure(merge(out, {"--adapter", f.one, "--type", "i32"}), 2, "--type");
  check_failure(merge(f.path, {"--adapter", f.one}), 2, "written over");
  check_failure(merge(f.one, {"--adapter", f.one}), 2, "written over");
  spill(f.path_of("file"), "no folder");
  check_failure(merge(f.path_of("file/out.gguf"), {"--adapter", f.one}), 1, "file/out.gguf");

  const std::string wide = f.path_of("wide.gguf");
  write_tiny_model(wide, {.hidden = 48});
  const finished wrong = flywheel_command({"lora", "merge", wide, out, "--adapter", f.one});
  check_failure(wrong, 1, "blk.0.attn_q.weight");
  CHECK(wrong.err.find("wide.gguf") != std::string::npos);
  CHECK(wrong.err.find("one.gguf") != std::string::npos);
  check_failure(flywheel_command({"lora", "extract", f.path, wide, out}), 1, "wide.gguf");
  check_failure(flywheel_command({"lora", "extract", f.path, f.path, out}), 1, "differs");
  CHECK(flywheel_command({"lora"}).code == 2);

  std::filesystem::create_directory(f.path_of("locked"));
  using perms = std::filesystem::perms;
  std::filesystem::permissions(f.path_of("locked"), perms::owner_read | perms::owner_exec);
  if (::access(f.path_of("locked").c_str(), W_OK) != 0) {  // the superuser may write everywhere
    check_failure(merge(f.path_of("locked/out.gguf"), {"--adapter", f.one}), 1, "locked");
    check_failure(flywheel_command({"lora", "convert", f.path, f.one, f.path_of("locked/peft")}), 1, "locked");
  }
  std::filesystem::permissions(f.path_of("locked"), perms::owner_all);
  for (const auto& entry : std::filesystem::directory_iterator(f.folder.path())) {
    const std::string name = entry.path().filename().string();
    CHECK(name.find("out") == std::string::npos);
    CHECK(name.find("partial") == std::string::npos);
  }
}
