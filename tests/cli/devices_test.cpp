// devices: the list, plans, and the options of what runs on devices.
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// With weights that devices take.
struct quantized : tiny_file {
  quantized() : tiny_file(model()) {}
  static tiny_model model() {
    tiny_model m;
    m.layers = 3;
    m.hidden = 64;
    m.ffn = 128;
    m.weights = dtype::q8_channel;
    return m;
  }
  /// Programs go to the test's folder, not to the user's.
  [[nodiscard]] finished command(const arguments& words) const {
    return flywheel_command(words, {}, {{"XDG_CACHE_HOME", (folder / "cache").string()}});
  }
  [[nodiscard]] arguments plan(const arguments& more) const {
    arguments words = {"devices", "plan", path};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  [[nodiscard]] arguments run(const arguments& more) const {
    arguments words = {"run", path, "-p", "hello", "-n", "6", "--greedy", "--ignore-eos", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

const json& device_of(const json& plan, const std::string& name) {
  for (const json& d : plan.at("devices"))
    if (d.at("name") == name) return d;
  FAIL("no device " << name);
  return plan;
}

}  // namespace

TEST_CASE("devices lists what needs no plug-in") {
  const json j = flywheel_command({"devices", "--json", "--isa", "generic"}).parsed();
  REQUIRE(j.at("devices").size() == 3);
  const json& cpu = j.at("devices").at(0);
  CHECK(cpu.at("device") == "cpu");
  CHECK(cpu.at("origin") == "built in");
  CHECK(cpu.at("arch") == "generic");
  CHECK(cpu.at("simulated") == false);
  for (const std::size_t i : {1U, 2U}) {
    const json& npu = j.at("devices").at(i);
    CHECK(npu.at("device") == (i == 1 ? "hexagon-sim" : "xdna-sim"));
    CHECK(npu.at("name") == npu.at("device"));
    CHECK(npu.at("simulated") == true);
    CHECK(npu.at("weight_formats").size() > 0);
    CHECK(npu.at("multiply_adds_per_second") > 0);
  }
  const finished page = flywheel_command({"devices"});
  CHECK(page.code == 0);
  CHECK(page.err.empty());
  for (const char* part : {"cpu\n", "hexagon-sim\n", "xdna-sim\n", "simulated", "on-chip memory", "multiply-adds/s"})
    CHECK(page.out.find(part) != std::string::npos);
  check_failure(flywheel_command({"devices", "--plugin", "/no/such.so"}), 1, "/no/such.so");
}

TEST_CASE("devices plan says who computes what") {
  const quantized m;
  const json alone = m.command(m.plan({"--json"})).parsed();
  REQUIRE(alone.at("devices").size() == 1);
  CHECK(device_of(alone, "cpu").at("share") == 1);
  CHECK(alone.at("transfers").at("count") == 0);
  // q, k, v, output: 64 x (64 + 32 + 32 + 64); gate, up, down: 3 x 64 x 128; three times; and the head
  const int work = 3 * (64 * 192 + 3 * 64 * 128) + 320 * 64;
  CHECK(alone.at("multiply_adds") == work);
  const json j = m.command(m.plan({"-d", "hexagon-sim", "--min-work", "0", "--ctx", "100", "--json"})).parsed();
  REQUIRE(j.at("devices").size() == 2);
  CHECK(device_of(j, "hexagon-sim").at("multiply_adds") == work);
  CHECK(device_of(j, "hexagon-sim").at("seconds") > 0);
  CHECK(device_of(j, "cpu").at("seconds").is_null());
  CHECK(j.at("attention").at("multiply_adds") == 3 * 2 * 64 * 100);
  CHECK(j.at("transfers").at("count") == 1 + 3 * 4 + 3);
  CHECK(j.at("architecture") == "llama");
  for (const json& o : j.at("operations")) {
    CHECK(o.at("device") == (o.at("operation") == "linear" ? "hexagon-sim" : "cpu"));
    CHECK(o.at("refusals").size() == (o.at("operation") == "linear" ? 0U : 1U));
  }
}

TEST_CASE("devices plan folds equal layers into one line, and gives reasons") {
  const quantized m;
  const arguments words = m.plan({"-d", "xdna-sim", "--min-work", "0"});
  const finished page = m.command(words);
  INFO(page.err);
  CHECK(page.code == 0);
  for (const char* part : {"blk.0-2.attn_q/k/v", "blk.0-2.ffn_gate/up", "128 x 64", "Q8_CHANNEL", "why not",
                           "xdna-sim: ", "transfers of", "not predicted", "Attention over 1,024 positions"})
    CHECK(page.out.find(part) != std::string::npos);
  CHECK(page.out.find("blk.1.") == std::string::npos);
  CHECK(page.out.find("\x1b") == std::string::npos);
  arguments all = words;
  all.push_back("--all");
  const std::string long_page = m.command(all).out;
  for (const char* part : {"blk.0.attn_q/k/v", "blk.1.attn_q/k/v", "blk.2.attn_q/k/v"})
    CHECK(long_page.find(part) != std::string::npos);
  // Everything is too little work: the same reason in every layer is one line.
  const std::string small = m.command(m.plan({"-d", "xdna-sim", "--min-work", "1000000"})).out;
  CHECK(small.find("too little work") != std::string::npos);
  CHECK(small.find("xdna-sim 0.0%, cpu 100.0%") != std::string::npos);
}

TEST_CASE("run computes the same tokens on devices") {
  const quantized m;
  const json ids = m.command(m.run({})).parsed().at("ids");
  for (const arguments& how : {arguments{"-d", "cpu"},
                               {"-d", "hexagon-sim", "--min-work", "0"},
                               {"-d", "xdna-sim?seed=3,delay_us=1,hexagon-sim,cpu", "--min-work", "0"},
                               {"-d", "xdna-sim", "-d", "hexagon-sim?seed=2", "--min-work", "0", "--no-blob-cache"}}) {
    const finished f = m.command(m.run(how));
    INFO(f.err);
    CHECK(f.parsed().at("ids") == ids);
  }
}

TEST_CASE("traces and reports are of simulated devices") {
  const quantized m;
  const std::string trace = (m.folder / "trace.json").string();
  const arguments npu = {"-d", "hexagon-sim", "--min-work", "0", "--trace", trace, "--device-report"};
  const finished f = m.command(m.run(npu));
  CHECK(f.code == 0);
  CHECK(f.err.rfind("hexagon-sim", 0) == 0);
  CHECK(f.err.find("submissions") != std::string::npos);
  const json events = json::parse(slurp(trace));
  CHECK((events.is_array() ? events : events.at("traceEvents")).size() > 0);

  check_failure(m.command(m.run({"--trace", trace})), 2, "--trace: needs a simulated device");
  check_failure(m.command(m.run({"-d", "cpu", "--device-report"})), 2, "--device-report: needs a simulated device");
  check_failure(m.command(m.run({"-d", "xdna-sim,hexagon-sim", "--trace", trace})), 2, "name one alone");
  const finished late = m.command(m.run({"-d", "xdna-sim", "--trace", "/no/such/folder/trace.json"}));
  CHECK(late.code == 1);  // after the text, which is there
  CHECK(late.err.find("/no/such/folder/trace.json") != std::string::npos);
  CHECK(!late.out.empty());
}

TEST_CASE("every command that runs a model takes devices") {
  const quantized m;
  const std::string text = (m.folder / "text").string(), out = (m.folder / "out").string();
  spill(text, "hello the world and the hello");
  for (arguments words : {arguments{"logits", m.path, "--ids", "1,2,3", "--out", out},
                          {"perplexity", m.path, "--file", text},
                          {"bench", "model", m.path, "-p", "4", "-n", "2", "-r", "1", "--rotate", "4"},
                          {"embed", m.path, "--text", "hello"}}) {
    const std::string trace = (m.folder / (words[0] + ".json")).string();
    for (const std::string& more : arguments{"-d", "hexagon-sim", "--min-work", "0", "--trace", trace})
      words.push_back(more);
    const finished f = m.command(words);
    INFO(words[0] << ": " << f.err);
    CHECK(f.code == 0);
    CHECK(std::filesystem::exists(trace));
  }
}

TEST_CASE("compiled programs are kept where the user's caches are, or where --blob-cache says") {
  const quantized m;
  const auto run = [&](const arguments& more) {
    arguments words = m.run({"-d", "xdna-sim", "--min-work", "0"});
    words.insert(words.end(), more.begin(), more.end());
    CHECK(m.command(words).code == 0);
  };
  run({"--no-blob-cache"});
  CHECK(!std::filesystem::exists(m.folder / "cache"));
  run({"--blob-cache", (m.folder / "mine").string()});
  CHECK(std::filesystem::exists(m.folder / "mine"));
  CHECK(!std::filesystem::exists(m.folder / "cache"));
  run({});
  CHECK(std::filesystem::exists(m.folder / "cache" / "flywheel" / "blobs"));
}

TEST_CASE("devices that are not there, or wrong, are wrong usage") {
  const quantized m;
  check_failure(m.command(m.run({"-d", "toaster"})), 2, "--device toaster");
  check_failure(m.command(m.run({"-d", "toaster"})), 2, "hexagon-sim");
  check_failure(m.command(m.run({"-d", "cpu,xdna-sim"})), 2, "name it last");
  check_failure(m.command(m.run({"-d", "xdna-sim,"})), 2, "empty name");
  check_failure(m.command(m.run({"-d", "xdna-sim?nonsense=1"})), 2, "nonsense");
  check_failure(m.command(m.run({"-d", "xdna-sim?seed=3,nonsense=1,hexagon-sim"})), 2, "nonsense");
  check_failure(m.command(m.run({"-d", "xdna-sim", "--blob-cache", "x", "--no-blob-cache"})), 2, "--blob-cache");
  check_failure(m.command(m.run({"-d", "xdna-sim", "--min-work", "-1"})), 2, "--min-work");
  check_failure(flywheel_command({"bench", "model", "tiny", "-d", "toaster"}), 2, "toaster");
  check_failure(flywheel_command({"devices", "plan"}), 2, "MODEL");
  check_failure(flywheel_command({"devices", "plan", "/no/such.gguf"}), 1, "/no/such.gguf");
  check_failure(flywheel_command({"devices", "plam"}), 2, "did you mean 'plan'?");
  const finished help = flywheel_command({"devices", "plan", "--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("Usage: flywheel devices plan MODEL") != std::string::npos);
}
