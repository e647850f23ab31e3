// Lineage: digests, what files say of their parents, and records that are not to be trusted.
#include "flywheel/adapt/lineage.hpp"

#include <filesystem>
#include <fstream>
#include <stop_token>
#include <string>

#include "flywheel/io/archive.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::adapt;
using namespace flywheel::test;

namespace {

void lineage_write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

void lineage_model(const std::filesystem::path& path, const std::function<void(io::metadata&)>& edit = {}) {
  write_tiny_model(path, {}, [&](io::metadata& meta, std::vector<tiny_tensor>&) {
    if (edit) edit(meta);
  });
}

lineage lineage_named(std::string name, std::string license = {}) {
  lineage l;
  l.name = std::move(name);
  l.license = std::move(license);
  return l;
}

}  // namespace

TEST_CASE("Digests of files and folders are SHA-256") {
  const temp_folder folder;
  lineage_write(folder / "a", "abc");  // FIPS 180-2, appendix B.1
  CHECK(file_digest(folder / "a").value() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  lineage_write(folder / "none", "");
  CHECK(file_digest(folder / "none").value() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  // Larger than a piece: the digest of the whole. `head -c 20000000 /dev/zero | sha256sum`
  lineage_write(folder / "big", std::string(20'000'000, '\0'));
  std::uint64_t last = 0, total = 0;
  control seen;
  seen.progress = [&](std::uint64_t done, std::uint64_t all, std::string_view) { last = done, total = all; };
  CHECK(file_digest(folder / "big", seen).value() ==
        "9e21c61969cd3e077a1b2b58ddb583b175e13c6479d2d83912eaddc23c0cdd52");
  CHECK(last == 20'000'000);
  CHECK(total == 20'000'000);
  std::stop_source stop;
  stop.request_stop();
  control stopped;
  stopped.stop = stop.get_token();
  CHECK(file_digest(folder / "big", stopped).error().code == errc::cancelled);
  CHECK(file_digest(folder / "missing").error().code == errc::not_found);

  lineage_write(folder / "hf/config.json", "{}");
  lineage_write(folder / "hf/model.safetensors", "abc");
  const std::string before = file_digest(folder / "hf").value();
  // printf '%s  config.json\n%s  model.safetensors\n' (sha256 of "{}") (sha256 of "abc") | sort | sha256sum
  CHECK(before == "bb26275d74d8b85c193d98418b10723876d6a1ef2da1f60287213e8b8a65bf38");
  lineage_write(folder / "hf/README.md", "not the model");
  lineage_write(folder / "hf/x.lineage.json", "nor this");
  CHECK(file_digest(folder / "hf").value() == before);
  lineage_write(folder / "hf/config.json", "{ }");
  CHECK(file_digest(folder / "hf").value() != before);
  CHECK(file_digest(folder.path() / "hf" / "").value() == file_digest(folder / "hf").value());
  std::filesystem::create_directory(folder / "empty");
  CHECK(file_digest(folder / "empty").error().code == errc::not_found);
}

TEST_CASE("A descendant's metadata and the file beside it say who its parents are") {
  const temp_folder folder;
  lineage_model(folder / "base.gguf", [](io::metadata& m) { m.set("general.license", std::string("mit")); });
  lineage_model(folder / "other.gguf", [](io::metadata& m) { m.set("general.name", std::string("other one")); });
  lineage child = lineage_named("child");
  child.method = "ties";
  child.parameters = R"({"density":0.5})";
  child.seed = 18446744073709551615ULL;
  child.version = "0.1.0";
  child.parents = {describe_parent(folder / "base.gguf", "base").value(),
                   describe_parent(folder / "other.gguf", "model").value()};
  CHECK(child.parents[0].sha256 == file_digest(folder / "base.gguf").value());
  CHECK(child.parents[0].license == "mit");
  lineage_model(folder / "child.gguf", [&](io::metadata& m) {
    m.set("general.base_model.7.name", std::string("of before"));
    add_lineage(m, child);
  });

  const io::metadata meta = io::archive::open(folder / "child.gguf").value().metadata();
  CHECK(meta.integer("general.base_model.count").value() == 2);
  CHECK(meta.string("general.base_model.0.name").value() == "tiny");
  CHECK(meta.string("general.base_model.1.name").value() == "other one");
  CHECK(meta.string("general.base_model.0.version").value() == "sha256:" + child.parents[0].sha256);
  CHECK(meta.string("general.license").value() == "mit");
  CHECK(!meta.contains("general.base_model.7.name"));

  const auto check = [&](const lineage& read) {
    CHECK(read.method == "ties");
    CHECK(read.parameters == R"({"density":0.5})");
    CHECK(read.seed == child.seed);
    CHECK(read.version == "0.1.0");
    REQUIRE(read.parents.size() == 2);
    CHECK(read.parents[0].role == "base");
    CHECK(read.parents[1].sha256 == child.parents[1].sha256);
    CHECK(read.parents[1].path == (folder / "other.gguf").string());
  };
  check(read_lineage(folder / "child.gguf").value());
  // A grandchild knows its grandparents; a folder's record lies beside it.
  lineage grandchild = lineage_named("grandchild");
  grandchild.method = "linear";
  grandchild.parents = {describe_parent(folder / "child.gguf", "model").value()};
  lineage_write(folder / "hf/config.json", "{}");
  write_lineage(grandchild, folder.path() / "hf" / "").value();
  const lineage read = read_lineage(folder / "hf").value();
  CHECK(read.name == "grandchild");
  REQUIRE(read.parents.size() == 1);
  check(read.parents[0]);
  // Without a record.
  CHECK(read_lineage(folder / "other.gguf").value().parents.empty());
  lineage_write(folder / "card/README.md", "---\nlanguage: en\nlicense: \"apache-2.0\"\n---\nlicense: no\n");
  CHECK(read_lineage(folder / "card").value().license == "apache-2.0");
  CHECK(read_lineage(folder / "missing.gguf").error().code == errc::not_found);
}

TEST_CASE("Licences that do not agree are said one by one") {
  io::metadata meta;
  meta.set("general.license", std::string("of the base"));
  lineage child;
  child.parents = {lineage_named("a", "mit"), lineage_named("b"), lineage_named("c", "gpl-3.0")};
  add_lineage(meta, child);
  CHECK(!meta.contains("general.license"));
  CHECK(meta.string("general.base_model.0.license").value() == "mit");
  CHECK(!meta.contains("general.base_model.1.license"));
  CHECK(meta.string("general.base_model.2.license").value() == "gpl-3.0");
  child.parents = {lineage_named("a"), lineage_named("b")};
  add_lineage(meta, child);
  CHECK(!meta.contains("general.license"));
  CHECK(!meta.contains("general.base_model.2.license"));
}

TEST_CASE("Verification tells right, wrong, missing and unknown digests") {
  const temp_folder folder;
  lineage_write(folder / "deep/right.bin", "abc");
  lineage_write(folder / "wrong.bin", "abd");
  const std::string digest = file_digest(folder / "deep/right.bin").value();
  const auto parent = [&](const std::string& path) {
    lineage l = lineage_named(path);
    l.path = path;
    l.sha256 = digest;
    return l;
  };
  lineage child = lineage_named("child");
  child.parents = {parent((folder / "deep/right.bin").string()), parent("deep/right.bin"), parent("wrong.bin"),
                   parent("gone.bin"), lineage_named("no digest")};
  child.parents[1].parents = {parent("elsewhere/wrong.bin")};  // one of that name lies beside the child
  using enum digest_state;
  const std::filesystem::path at = folder / "child.gguf";
  CHECK(verify_lineage(child, at).value() ==
        std::vector<digest_state>{unknown, right, right, wrong, wrong, missing_file, unknown});
  std::stop_source stop;
  stop.request_stop();
  control stopped;
  stopped.stop = stop.get_token();
  CHECK(verify_lineage(child, at, stopped).error().code == errc::cancelled);
}

TEST_CASE("Records that are not to be trusted are refused") {
  const temp_folder folder;
  const auto read = [&](const io::value& record) {
    lineage_model(folder / "a.gguf", [&](io::metadata& m) { m.set("flywheel.lineage", record); });
    return read_lineage(folder / "a.gguf");
  };
  std::string deep, wide = R"({"parents":[)";
  for (int i = 0; i < 100'000; ++i) deep += R"({"parents":[)";
  for (int i = 0; i < 5000; ++i) wide += "{},";
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("7"), deep, wide + "{}]}",
        std::string(R"({"name":7})"), std::string(R"({"seed":-1})"), std::string(R"({"seed":1e99999})"),
        std::string(R"({"parents":{}})"), std::string(R"({"parents":[7]})"), std::string(R"({"sha256":"abc"})"),
        std::string(R"({"sha256":")" + std::string(64, 'G') + "\"}"), std::string(17U << 20, ' ')}) {
    INFO(text.substr(0, 60));
    const auto got = read(text);
    REQUIRE(!got);
    CHECK(got.error().code == errc::malformed);
    CHECK(got.error().where.find("a.gguf") != std::string::npos);
  }
  CHECK(read(std::uint32_t{7}).error().code == errc::malformed);
  CHECK(read(std::string(R"({"name":"x","later":[1,{}]})")).value().name == "x");  // keys of later versions
}

TEST_CASE("Trees without end are recorded as far as they can be read again") {
  lineage child;
  for (int i = 0; i < 40; ++i) {
    lineage next = lineage_named("generation " + std::to_string(i));
    next.parents = i < 14 ? std::vector<lineage>{child, child} : std::vector<lineage>{child};
    child = std::move(next);
  }
  const temp_folder folder;
  std::size_t generations = 0;
  lineage_model(folder / "a.gguf", [&](io::metadata& m) { add_lineage(m, child); });
  const lineage read = read_lineage(folder / "a.gguf").value();
  for (const lineage* l = &read; !l->parents.empty(); l = &l->parents[0]) ++generations;
  CHECK(generations == 24);
  CHECK(read.name == "generation 39");
}
