// merge and lineage.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <string>

#include "cli/process.hpp"
#include "flywheel/adapt/lineage.hpp"
#include "flywheel/io/archive.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

struct merge_folder {
  temp_folder folder;
  [[nodiscard]] std::string at(const std::string& name) const { return (folder / name).string(); }
  void add(const std::string& name, std::uint64_t seed,
           const std::function<void(io::metadata&, std::vector<tiny_tensor>&)>& edit = {}) const {
    tiny_model m;
    m.seed = seed;
    m.layers = 2;
    m.name = name.substr(0, name.find('.'));
    write_tiny_model(folder / name, m, edit);
  }
  /// Files beside the inputs.
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()));
  }
  void check_no_file(const arguments& args, const std::vector<std::string>& parts) const {
    const std::size_t before = files();
    const finished f = flywheel_command(args);
    INFO(f.err);
    CHECK(f.code != 0);
    CHECK(f.out.empty());
    for (const std::string& part : parts) CHECK(f.err.find(part) != std::string::npos);
    CHECK(files() == before);
  }
};

std::string tensor_bytes(const std::string& file, std::string_view name) {
  const io::archive opened = io::archive::open(file).value();
  buffer scratch;
  const auto bytes = opened.bytes(*opened.find(name), scratch).value();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TEST_CASE("merge works by recipe and by options, and says who the parents are") {
  const merge_folder f;
  f.add("base.gguf", 1, [](io::metadata& m, auto&) { m.set("general.license", std::string("mit")); });
  f.add("a.gguf", 2);
  f.add("b.gguf", 3);
  spill(f.folder / "r.yml",
        "models:\n  - {model: a.gguf, parameters: {weight: 0.5}}\n  - {model: b.gguf, parameters: {weight: 0.25}}\n"
        "merge_method: ties\nbase_model: base.gguf\nparameters: {density: 0.5}\nseed: 7\n");
  const std::string out = f.at("child.gguf");
  const auto plan = flywheel_command({"merge", f.at("r.yml"), out, "--plan", "--json"}).parsed();
  CHECK(plan.at("peak_memory").get<std::uint64_t>() > 0);
  CHECK(plan.at("steps").size() == 20);
  CHECK(plan.at("steps")[0].at("method") == "ties");
  CHECK(!std::filesystem::exists(out));
  const finished table = flywheel_command({"merge", f.at("r.yml"), out, "--plan"});
  CHECK(table.code == 0);
  CHECK(table.out.find("blk.*.attn_q.weight") != std::string::npos);
  CHECK(table.out.find("weight[a.gguf] 0.5") != std::string::npos);

  const auto done = flywheel_command({"merge", f.at("r.yml"), out, "--json"}).parsed();
  CHECK(done.at("tensors") == 20);
  CHECK(done.at("parents").size() == 3);
  const adapt::lineage child = adapt::read_lineage(out).value();
  CHECK(child.name == "child");
  CHECK(child.method == "ties");
  CHECK(child.seed == 7);
  CHECK(child.version == "0.1.0");
  CHECK(json::parse(child.parameters).at("recipe").get<std::string>().find("density: 0.5") != std::string::npos);
  REQUIRE(child.parents.size() == 3);
  for (const adapt::lineage& parent : child.parents)
    CHECK(parent.sha256 == adapt::file_digest(f.folder / (parent.name + ".gguf")).value());
  CHECK(child.parents[2].role == "base");
  CHECK(child.parents[2].license == "mit");
  const io::metadata meta = io::archive::open(out).value().metadata();
  CHECK(meta.string("general.name").value() == "child");
  CHECK(meta.string("general.base_model.0.version").value() == "sha256:" + child.parents[0].sha256);
  CHECK(json::parse(slurp(out + ".lineage.json")).at("parents")[0].at("sha256") == child.parents[0].sha256);

  const std::string again = f.at("again.gguf");
  REQUIRE(
      flywheel_command({"merge", "--method", "ties", "--base", f.at("base.gguf"), "--model", f.at("a.gguf") + ":0.5",
                        "--model", f.at("b.gguf") + ":0.25", "-p", "density=0.5", again, "--no-digest"})
          .code == 0);
  for (const char* tensor : {"blk.0.ffn_up.weight", "token_embd.weight"})
    CHECK(tensor_bytes(out, tensor) == tensor_bytes(again, tensor));
  CHECK(adapt::read_lineage(again).value().parents[0].sha256.empty());

  // Its own child, as safetensors: a record within a record.
  const std::string grandchild = f.at("grandchild.safetensors");
  REQUIRE(
      flywheel_command({"merge", "--method", "linear", "--model", out, "--model", f.at("a.gguf"), grandchild}).code ==
      0);
  const finished tree = flywheel_command({"lineage", grandchild, "--verify", "--svg", f.at("tree.svg")});
  INFO(tree.out << tree.err);
  CHECK(tree.code == 0);
  CHECK(std::count(tree.out.begin(), tree.out.end(), '\n') == 6);
  CHECK(tree.out.find("verified") != std::string::npos);
  const std::string drawing = slurp(f.folder / "tree.svg");
  CHECK(drawing.find("<svg ") == 0);
  CHECK(drawing.find("verified") != std::string::npos);
  CHECK(drawing.find("\nmit</text>") == std::string::npos);
  const auto record = flywheel_command({"lineage", grandchild, "--verify", "--json"}).parsed();
  CHECK(record.at("digest") == "unknown");
  CHECK(record.at("parents")[0].at("digest") == "right");
  CHECK(record.at("parents")[0].at("parents")[2].at("name") == "base");

  // A parent that is another file now.
  f.add("b.gguf", 4);
  const finished changed = flywheel_command({"lineage", out, "--verify"});
  CHECK(changed.code == 1);
  CHECK(changed.out.find("another file") != std::string::npos);
  std::filesystem::remove(f.folder / "b.gguf");
  CHECK(flywheel_command({"lineage", out, "--verify"}).out.find("not here") != std::string::npos);
}

TEST_CASE("What cannot be merged leaves no file behind") {
  const merge_folder f;
  f.add("a.gguf", 1);
  f.add("b.gguf", 2);
  f.add("nan.gguf", 3, [](io::metadata&, std::vector<tiny_tensor>& tensors) {
    for (tiny_tensor& t : tensors)
      if (t.plan.name == "blk.1.ffn_up.weight") t.values[77] = std::numeric_limits<float>::quiet_NaN();
  });
  f.add("short.gguf", 4, [](io::metadata&, std::vector<tiny_tensor>& tensors) { tensors.erase(tensors.begin() + 3); });
  spill(f.folder / "cycle.yml", "models: &a [*a]\nmerge_method: linear\n");
  spill(f.folder / "torn.gguf", slurp(f.folder / "a.gguf").substr(0, 30000));
  const std::string out = f.at("out.gguf");
  const auto linear = [&](const std::string& a, const std::string& b) {
    return arguments{"merge", "--method", "linear", "--model", f.at(a), "--model", f.at(b), out};
  };
  f.check_no_file(linear("a.gguf", "nan.gguf"), {"blk.1.ffn_up.weight", "nan.gguf"});
  f.check_no_file(linear("a.gguf", "short.gguf"), {"blk.0.attn_k.weight", "a.gguf", "short.gguf"});
  f.check_no_file(linear("a.gguf", "torn.gguf"), {"torn.gguf"});
  f.check_no_file({"merge", f.at("cycle.yml"), out}, {"cycle.yml", "line 1", "contains itself"});
  f.check_no_file({"merge", f.at("nowhere.yml"), out}, {"nowhere.yml"});
  f.check_no_file({"merge", "--method", "linear", "--model", f.at("a.gguf"), f.at("a.gguf")}, {"a.gguf"});
  f.check_no_file({"merge", "--method", "linear", "--model", f.at("a.gguf"), f.at("no/folder/out.gguf")},
                  {"no/folder"});
  f.check_no_file({"merge", "--method", "linear", out}, {"--model"});
  f.check_no_file({"merge", "--method", "linear", "--model", f.at("a.gguf"), "--type", "x", out}, {"--type", "'x'"});
  if (::geteuid() != 0) {  // who may write everywhere sees no read-only folder
    std::filesystem::create_directory(f.folder / "closed");
    ::chmod((f.folder / "closed").c_str(), 0500);
    f.check_no_file({"merge", "--method", "linear", "--model", f.at("a.gguf"), f.at("closed/out.gguf")}, {"closed"});
  }
}
