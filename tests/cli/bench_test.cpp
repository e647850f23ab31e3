// bench: the shape of what is measured. How fast anything is, is not tested.
#include <filesystem>
#include <string>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel::test;

namespace {

/// Small enough for sanitizers.
const arguments tiny_hardware = {"bench", "hardware", "--quick", "--only", "q4_0,f32", "--rotate",
                                 "4",     "--shape",  "48x256",  "-t",     "2"};

arguments with(arguments words, const arguments& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// Every element is closed, in order, and attributes are quoted: what an XML parser insists on.
void check_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  std::size_t elements = 0, at = 0;
  while ((at = xml.find_first_of("<>", at)) != std::string::npos) {
    REQUIRE(xml[at] == '<');
    const std::size_t end = xml.find_first_of("<>", at + 1);
    REQUIRE(end != std::string::npos);
    REQUIRE(xml[end] == '>');
    const std::string tag = xml.substr(at + 1, end - at - 1);
    CHECK(std::count(tag.begin(), tag.end(), '"') % 2 == 0);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag.front() == '/') {
      REQUIRE(!open.empty());
      CHECK(open.back() == tag.substr(1));
      open.pop_back();
    } else {
      CHECK((open.empty() == (elements == 0)));  // one root
      ++elements;
      if (tag.back() != '/') open.push_back(name);
    }
    at = end + 1;
  }
  CHECK(open.empty());
  CHECK(elements > 10);
  for (std::size_t i = 0; (i = xml.find('&', i)) != std::string::npos; ++i)
    CHECK((xml.compare(i, 4, "&lt;") == 0 || xml.compare(i, 4, "&gt;") == 0 || xml.compare(i, 5, "&amp;") == 0));
  CHECK(xml.find("nan") == std::string::npos);
  CHECK(xml.find("inf") == std::string::npos);
}

}  // namespace

TEST_CASE("bench model measures a file") {
  const tiny_file file;
  const json j = flywheel_command({"bench", "model", file.path, "-p", "8", "-n", "4", "-r", "2", "-t", "2", "--depth",
                                   "5", "--rotate", "4", "--json"})
                     .parsed();
  CHECK(j.at("model") == "tiny.gguf");
  CHECK(j.at("threads").get<int>() >= 1);
  CHECK(!j.at("isa").get<std::string>().empty());
  CHECK(!j.at("type").get<std::string>().empty());
  CHECK(j.at("depth") == 5);
  CHECK(j.at("prefill").at("tokens") == 8);
  CHECK(j.at("decode").at("tokens") == 4);
  for (const char* part : {"prefill", "decode"}) {
    const json& spread = j.at(part).at("tps_spread");
    CHECK(spread.at("min") <= j.at(part).at("tps"));
    CHECK(spread.at("max") >= j.at(part).at("tps"));
    CHECK(spread.at("min") > 0);
  }
  CHECK(j.at("prefill").at("pct_int8_peak") > 0);
  CHECK(j.at("prefill").at("pct_int8_peak_best") >= j.at("prefill").at("pct_int8_peak"));
  CHECK(j.at("decode").at("pct_read_bw") > 0);
  CHECK(j.at("decode").at("pct_read_bw_best") >= j.at("decode").at("pct_read_bw"));
  CHECK(j.at("decode").at("pct_read_bw_with_kv") > j.at("decode").at("pct_read_bw"));
  CHECK(j.at("sessions").is_null());
  CHECK(j.at("first_token_ms") > 0);
  CHECK(j.at("load_ms") > 0);
  CHECK(j.at("peak_rss_bytes") > 100000);
  CHECK(j.at("roofs").at("int8_ops_per_second") > 0);
  CHECK(j.at("roofs").at("read_bytes_per_second") >= j.at("roofs").at("median_read_bytes_per_second"));
}

TEST_CASE("bench model decodes several sessions together") {
  const tiny_file file;
  arguments args{"bench", "model", file.path, "-p",         "8", "-n",       "4", "-r",
                 "2",     "-t",    "1",       "--sessions", "3", "--rotate", "4"};
  const std::string page = flywheel_command(args).out;
  CHECK(page.find("3 sessions") != std::string::npos);
  args.push_back("--json");
  const json j = flywheel_command(args).parsed().at("sessions");
  CHECK(j.at("count") == 3);
  CHECK(j.at("tokens") == 4);
  CHECK(j.at("tps") > 0);
  CHECK(j.at("times_one") > 0);
}

TEST_CASE("bench model makes a shape's weights, and takes them away again") {
  const temp_folder folder;
  const std::vector<std::pair<std::string, std::string>> here = {{"TMPDIR", folder.path().string()}};
  const arguments words = {"bench", "model", "tiny", "--type", "q8_0",     "-p", "8",
                           "-n",    "4",     "-r",   "1",      "--rotate", "4"};
  const json j = flywheel_command(with(words, {"--json"}), {}, here).parsed();
  CHECK(j.at("model") == "tiny");
  CHECK(j.at("type") == "Q8_0");
  // Two layers of 256 x (256 + 2 x 128 + 256 + 3 x 512); Q8_0 is 34 bytes per 32, and the tied head of 1000 rows and
  // the five norms in f32 are read for every token.
  const double layers = 2 * 256.0 * (256 + 2 * 128 + 256 + 3 * 512);
  CHECK(j.at("weights").at("layer_multiply_adds") == layers);
  CHECK(j.at("weights").at("read_bytes") == (layers + 256 * 1000) * 34 / 32 + 5 * 256 * 4);
  CHECK(std::filesystem::is_empty(folder.path()));
  const finished page = flywheel_command(words, {}, here);
  CHECK(page.code == 0);
  for (const char* part : {"prefill", "decode", "tokens/s", "of reading", "first token", "peak memory"})
    CHECK(page.out.find(part) != std::string::npos);
  CHECK(page.out.find("\x1b") == std::string::npos);
}

TEST_CASE("bench hardware measures every number of rows of every format") {
  const temp_folder folder;
  const std::string plot = (folder / "roof.svg").string();
  const json j = flywheel_command(with(tiny_hardware, {"--json", "--plot", plot})).parsed();
  CHECK(j.at("caches").contains("l3"));
  CHECK(j.at("huge_pages").contains("setting"));
  CHECK(j.at("clock_ghz") > 0);
  CHECK(j.at("dispatch_us") > 0);
  const int threads = j.at("threads").get<int>();
  REQUIRE(j.at("scaling").size() == (threads == 1 ? 1U : 2U));
  for (const json& s : j.at("scaling"))
    for (const char* key : {"int8_gops", "f32_gflops", "read_gbs", "prefill_gops", "decode_gbs"}) CHECK(s.at(key) > 0);
  CHECK(j.at("scaling").back().at("threads") == threads);
  REQUIRE(j.at("pack").size() == 2);
  REQUIRE(j.at("kernels").size() == 12);
  std::size_t i = 0;
  for (const char* type : {"Q4_0", "F32"})
    for (const int m : {1, 2, 4, 8, 32, 512}) {
      const json& p = j.at("kernels").at(i++);
      CHECK(p.at("type") == type);
      CHECK(p.at("m") == m);
      CHECK(p.at("n") == 48);
      CHECK(p.at("k") == 256);
      CHECK(p.at("ms").at("min") <= p.at("ms").at("median"));
      CHECK(p.at("gops") > 0);
      CHECK(p.at("pct_roof") > 0);
      CHECK((p.at("roof") == "read" || p.at("roof") == "int8" || p.at("roof") == "f32"));
      // Activations in 8 bits, a unit in the last place of which is 1/127 of the largest of 256; f32 sums.
      CHECK(p.at("max_error") < (type == std::string("F32") ? 1e-5 : 5e-2));
      if (type == std::string("Q4_0")) CHECK(p.at("max_error") > 0);
    }
  CHECK(j.at("prefetch").at("distances").size() == 6);
  CHECK(j.at("model").at("predicted").size() == 2);
  CHECK(j.at("model").at("predicted").at(0).at("pp512") > 0);
  CHECK(j.at("model").at("measured").is_null());
  CHECK(j.at("recommended_threads").at("decode") >= 1);
  check_well_formed(slurp(plot));
}

TEST_CASE("bench hardware prints a page") {
  const finished page = flywheel_command(tiny_hardware);
  INFO(page.err);
  CHECK(page.code == 0);
  for (const char* part : {"processor", "caches", "Roofs", "Products", "M = 512", "Prefetching", "Recommended", "q4_0"})
    CHECK(page.out.find(part) != std::string::npos);
  CHECK(page.out.find("\x1b") == std::string::npos);
  const finished full = flywheel_command(with(tiny_hardware, {"--full", "--isa", "generic"}));
  CHECK(full.out.find("matmul_f32_q4_0_4x8_generic") != std::string::npos);
}

TEST_CASE("bench refuses what it does not understand") {
  check_failure(flywheel_command({"bench"}), 2, "hardware or model");
  check_failure(flywheel_command({"bench", "nonsense"}), 2, "nonsense: unknown command; see 'flywheel bench --help'");
  check_failure(flywheel_command({"bench", "hardwear"}), 2, "did you mean 'hardware'?");
  check_failure(flywheel_command({"bench", "model"}), 2, "see 'flywheel bench model --help'");
  check_failure(flywheel_command({"bench", "model", "tiny", "x"}), 2, "x: one argument too many");
  check_failure(flywheel_command({"bench", "model", "tiny", "--type", "q9"}), 2, "--type");
  check_failure(flywheel_command({"bench", "model", "tiny", "-p", "0"}), 2, "--prompt-tokens");
  check_failure(flywheel_command({"bench", "model", "tiny", "--isa", "z80"}), 2, "z80");
  check_failure(flywheel_command({"bench", "model", "no-such-file"}), 1, "no-such-file");
  check_failure(flywheel_command({"bench", "model", "no-such-file", "--type", "q8_0"}), 2, "--type");
  check_failure(flywheel_command({"bench", "hardware", "--qiuck"}), 2, "did you mean '--quick'?");
  check_failure(flywheel_command({"bench", "hardware", "--only", "q4_0,q9"}), 2, "q9");
  check_failure(flywheel_command({"bench", "hardware", "--shape", "100x100"}), 2, "100x100");
  check_failure(flywheel_command({"bench", "hardware", "--shape", "100"}), 2, "100");
  check_failure(flywheel_command({"bench", "hardware", "--isa", "z80"}), 2, "z80");
  check_failure(flywheel_command({"bench", "hardware", "-t", "0"}), 2, "--threads");
}

TEST_CASE("help of a command's own commands") {
  for (const std::string name : {"hardware", "model"}) {
    const finished f = flywheel_command({"bench", name, "--help"});
    CHECK(f.code == 0);
    CHECK(f.out.find("Usage: flywheel bench " + name) != std::string::npos);
    CHECK(f.out.find("--json") != std::string::npos);
  }
}
