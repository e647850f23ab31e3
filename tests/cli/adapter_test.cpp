// --adapter: paths, scales, several at once; what it does not take.
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "support/tiny_adapter.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

struct adapted : tiny_file {
  std::string adapter = (folder / "some:adapter.gguf").string();  // a colon is nothing special in a name
  adapted() { write_tiny_adapter(adapter, {{"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}}, tiny_tensors({})); }
  /// The bytes of a row of logits.
  [[nodiscard]] std::vector<std::byte> logits(const arguments& more) const {
    const std::string out = (folder / "rows").string();
    arguments all = {"logits", path, "--ids", "1,300,301", "--out", out};
    all.insert(all.end(), more.begin(), more.end());
    (void)flywheel_command(all).parsed();
    return read_bytes(out);
  }
};

}  // namespace

TEST_CASE("logits, run and perplexity take adapters with scales") {
  const adapted m;
  const auto plain = m.logits({}), whole = m.logits({"--adapter", m.adapter});
  CHECK(whole != plain);
  CHECK(m.logits({"--adapter", m.adapter + ":1.0"}) == whole);
  CHECK(m.logits({"--adapter", m.adapter + ":0"}) == plain);
  CHECK(m.logits({"--adapter", m.adapter + ":0.5"}) != whole);
  CHECK(m.logits({"--adapter", m.adapter + ":0.5", "--adapter", m.adapter + ":-0.5"}) != whole);
  const arguments text = {"run", m.path, "--ids", "1,300,301", "-n", "12", "--greedy", "--ignore-eos", "--json"};
  arguments with = text;
  with.insert(with.end(), {"--adapter", m.adapter + ":8"});
  CHECK(flywheel_command(text).parsed().at("ids") != flywheel_command(with).parsed().at("ids"));
  const std::string file = (m.folder / "text").string();
  spill(file, "the hen and the other hen");
  const arguments measure = {"perplexity", m.path, "--file", file, "--ctx", "16", "--json"};
  with = measure;
  with.insert(with.end(), {"--adapter", m.adapter});
  CHECK(flywheel_command(measure).parsed().at("perplexity") != flywheel_command(with).parsed().at("perplexity"));
}

TEST_CASE("embed and evaluate take adapters") {
  const adapted m;
  const arguments embed = {"embed", m.path, "--ids", "1,300,301", "--json"};
  arguments with = embed;
  with.insert(with.end(), {"--adapter", m.adapter});
  CHECK(flywheel_command(embed).parsed() != flywheel_command(with).parsed());
  const std::string text = (m.folder / "text").string();
  spill(text, "the hen and the other hen and the other hen and the hen and the other");
  const arguments compare = {"evaluate", m.path, "--baseline", m.path, "--text", text, "--ctx", "8", "--json"};
  const auto kl = [](const json& j) { return j.at("models")[0].at("kl").at("value").get<double>(); };
  CHECK(kl(flywheel_command(compare).parsed()) < 1e-8);
  with = compare;
  with.insert(with.end(), {"--adapter", m.adapter});
  const json changed = flywheel_command(with).parsed();
  CHECK(kl(changed) > 1e-6);
  CHECK(changed.at("adapters") == json::array({m.adapter}));
  with.push_back("--speed");
  check_failure(flywheel_command(with), 2, "--speed");
}

TEST_CASE("what is wrong with an adapter is said") {
  const adapted m;
  const auto fails = [&](const std::string& given, const std::string& what, int code) {
    check_failure(
        flywheel_command({"logits", m.path, "--ids", "1", "--out", (m.folder / "o").string(), "--adapter", given}),
        code, what);
  };
  fails(m.adapter + ":much", "'much' is no scale", 2);
  fails(m.adapter + ":nan", "'nan' is no scale", 2);
  fails((m.folder / "none.gguf").string(), "none.gguf", 1);
  fails(m.path, "no adapter", 1);
}

TEST_CASE("bench model compares adapters with none, in turns") {
  const adapted m;
  for (const arguments& which : {arguments{"--adapter", m.adapter}, arguments{"--adapter-rank", "3"}}) {
    arguments all = {"bench", "model", m.path, "-p",       "8", "-n",         "4", "-r",
                     "1",     "-t",    "2",    "--rotate", "4", "--sessions", "2", "--json"};
    all.insert(all.end(), which.begin(), which.end());
    const json j = flywheel_command(all).parsed().at("adapters");
    for (const char* part : {"prefill", "decode", "together"}) {
      CHECK(j.at(part).at("seconds_with") > 0);
      CHECK(j.at(part).at("speed") > 0);
    }
    CHECK(j.at("bytes") > 0);
  }
  check_failure(flywheel_command({"bench", "model", m.path, "--adapter-rank", "3", "--adapter", m.adapter}), 2,
                "--adapter");
}
