// logits, perplexity and embed against each other and against the reference results.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "support/data.hpp"
#include "support/tiny_encoder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::vector<float> read_floats(const std::filesystem::path& path) {
  const std::vector<std::byte> bytes = read_bytes(path);
  REQUIRE(bytes.size() % 4 == 0);
  std::vector<float> values(bytes.size() / 4);
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

double nll(const float* row, std::size_t n, std::size_t id) {
  const double top = *std::max_element(row, row + n);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += std::exp(row[i] - top);
  return top + std::log(sum) - row[id];
}

}  // namespace

TEST_CASE("logits writes the rows that were asked for") {
  const tiny_file m;
  const std::string out = (m.folder / "rows.f32").string();
  const std::string ids = "1,300,301,302,303,304,305";
  const auto rows = [&](const arguments& more) {
    arguments all = {"logits", m.path, "--ids", ids, "--out", out, "--kv-type", "f32"};
    all.insert(all.end(), more.begin(), more.end());
    const json j = flywheel_command(all).parsed();
    CHECK(j.at("n_vocab") == 320);
    CHECK(j.at("dtype") == "f32");
    const std::vector<float> values = read_floats(out);
    CHECK(values.size() == j.at("n_rows").get<std::size_t>() * 320);
    CHECK(j.at("positions").size() == j.at("n_rows"));
    return std::pair(j.at("positions").get<std::vector<int>>(), values);
  };
  const auto [every_position, all] = rows({"--every", "1"});
  CHECK(every_position == std::vector<int>{0, 1, 2, 3, 4, 5, 6});
  const auto [third_position, third] = rows({"--every", "4"});
  CHECK(third_position == std::vector<int>{0, 4, 6});
  const auto [last_position, last] = rows({});
  CHECK(last_position == std::vector<int>{6});
  for (std::size_t i = 0; i < 320; ++i) {
    CHECK(last[i] == Approx(all[6 * 320 + i]).margin(1e-4));
    CHECK(third[320 + i] == Approx(all[4 * 320 + i]).margin(1e-4));
  }
}

TEST_CASE("logits takes more ids than the usual context") {
  const tiny_file m({.context = 16});
  spill(m.folder / "ids.txt", [] {
    std::string list = "1";
    for (int i = 0; i < 40; ++i) list += " " + std::to_string(260 + i);
    return list;
  }());
  const arguments args = {
      "logits", m.path, "--ids", "@" + (m.folder / "ids.txt").string(), "--out", (m.folder / "out").string()};
  CHECK(flywheel_command(args).parsed().at("n_tokens") == 41);
  arguments small = args;
  small.insert(small.end(), {"--ctx", "8"});
  std::filesystem::remove(m.folder / "out");
  check_failure(flywheel_command(small), 1, "--ctx: the context holds 8 tokens, 41 were given");
  CHECK(!std::filesystem::exists(m.folder / "out"));
}

TEST_CASE("perplexity is exp of the mean of what logits says, window by window") {
  const tiny_file m;
  const std::string text = "hello the world and the other thing in here on there";
  spill(m.folder / "text.txt", text);
  const std::string file = (m.folder / "text.txt").string();
  const auto ids =
      flywheel_command({"tokenize", m.path, "--file", file, "--json"}).parsed().at("ids").get<std::vector<int>>();
  const std::size_t ctx = 8;
  REQUIRE(ids.size() > 2 * ctx);
  const auto rows_of = [&](const std::vector<int>& window) {
    std::string list;
    for (const int id : window) list += (list.empty() ? "" : ",") + std::to_string(id);
    const std::string out = (m.folder / "rows.f32").string();
    (void)flywheel_command({"logits", m.path, "--ids", list, "--every", "1", "--out", out, "--kv-type", "f32"})
        .parsed();
    return read_floats(out);
  };

  double sum = 0;
  for (std::size_t begin = 0; begin < ids.size(); begin += ctx - 1) {
    std::vector<int> window = {1};
    for (std::size_t i = begin; i < std::min(ids.size(), begin + ctx - 1); ++i) window.push_back(ids[i]);
    const std::vector<float> rows = rows_of(window);
    for (std::size_t i = 1; i < window.size(); ++i)
      sum += nll(rows.data() + (i - 1) * 320, 320, static_cast<std::size_t>(window[i]));
  }
  const json j =
      flywheel_command({"perplexity", m.path, "--file", file, "--ctx", "8", "--kv-type", "f32", "--json"}).parsed();
  CHECK(j.at("tokens_scored") == ids.size());
  CHECK(j.at("windows") == (ids.size() + ctx - 2) / (ctx - 1));
  CHECK(j.at("mean_nll").get<double>() == Approx(sum / static_cast<double>(ids.size())).epsilon(1e-5));
  CHECK(j.at("perplexity").get<double>() == Approx(std::exp(sum / static_cast<double>(ids.size()))).epsilon(1e-4));
  CHECK(j.at("bits_per_byte").get<double>() ==
        Approx(sum / std::log(2.0) / static_cast<double>(text.size())).epsilon(1e-4));

  // llama-perplexity's protocol: the text with BOS, whole chunks, BOS first, the predictions of the second half.
  std::vector<int> with_bos = {1};
  with_bos.insert(with_bos.end(), ids.begin(), ids.end());
  double half = 0;
  int scored = 0;
  for (std::size_t begin = 0; begin + ctx <= with_bos.size(); begin += ctx) {
    std::vector<int> chunk(with_bos.begin() + static_cast<std::ptrdiff_t>(begin),
                           with_bos.begin() + static_cast<std::ptrdiff_t>(begin + ctx));
    chunk[0] = 1;
    const std::vector<float> rows = rows_of(chunk);
    for (std::size_t i = ctx / 2; i + 1 < ctx; ++i, ++scored)
      half += nll(rows.data() + i * 320, 320, static_cast<std::size_t>(chunk[i + 1]));
  }
  const json h = flywheel_command({"perplexity", m.path, "--file", file, "--ctx", "8", "--second-half", "--kv-type",
                                   "f32", "--json"})
                     .parsed();
  CHECK(h.at("tokens_scored") == scored);
  CHECK(h.at("mean_nll").get<double>() == Approx(half / scored).epsilon(1e-5));
  const json two =
      flywheel_command({"perplexity", m.path, "--file", file, "--ctx", "8", "--windows", "2", "--json"}).parsed();
  CHECK(two.at("windows") == 2);
  CHECK(two.at("tokens_scored") == 14);
  CHECK(!two.contains("bits_per_byte"));
  const finished readable = flywheel_command({"perplexity", m.path, "--file", file});
  CHECK(readable.code == 0);
  CHECK(readable.out.rfind("perplexity ", 0) == 0);
}

TEST_CASE("perplexity refuses texts that are too short") {
  const tiny_file m;
  check_failure(flywheel_command({"perplexity", m.path, "--file", "-"}, ""), 1, "too few");
  check_failure(flywheel_command({"perplexity", m.path, "--file", "-", "--second-half", "--ctx", "64"}, "hello"), 1,
                "too few");
  check_failure(flywheel_command({"perplexity", m.path, "--file", "/no/such/text"}), 1, "/no/such/text");
}

TEST_CASE("embed gives one vector per text") {
  const tiny_file m;
  const json j =
      flywheel_command({"embed", m.path, "--text", "hello", "--text", "the world", "--text", "hello", "--json"})
          .parsed();
  const auto vectors = j.at("embeddings").get<std::vector<std::vector<double>>>();
  REQUIRE(vectors.size() == 3);
  CHECK(vectors[0] == vectors[2]);
  CHECK(vectors[0] != vectors[1]);
  for (const auto& v : vectors) {
    REQUIRE(v.size() == 32);
    double squares = 0;
    for (const double x : v) squares += x * x;
    CHECK(squares == Approx(1).epsilon(1e-4));
  }
  spill(m.folder / "lines.txt", "hello\r\n\nthe world");
  const json lines =
      flywheel_command({"embed", m.path, "--lines", (m.folder / "lines.txt").string(), "--json"}).parsed();
  REQUIRE(lines.at("embeddings").size() == 2);
  CHECK(lines.at("embeddings").at(1) == j.at("embeddings").at(1));

  const auto one = [&](const arguments& more) {
    arguments all = {"embed", m.path, "--ids", "1,300,301", "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return flywheel_command(all).parsed().at("embeddings").at(0).get<std::vector<double>>();
  };
  const auto plain = one({"--no-normalize"});
  const auto scaled = one({});
  double length = 0;
  for (const double x : plain) length += x * x;
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(scaled[i] == Approx(plain[i] / std::sqrt(length)).margin(1e-5));
  CHECK(one({"--pooling", "mean"}) != scaled);
  CHECK(one({"--pooling", "last"}) == scaled);  // the default of a decoder
  const finished text = flywheel_command({"embed", m.path, "--text", "hello"});
  CHECK(text.code == 0);
  CHECK(std::count(text.out.begin(), text.out.end(), ' ') == 31);
  check_failure(flywheel_command({"embed", m.path, "--ids", ""}), 1, "no tokens");
  check_failure(flywheel_command({"embed", m.path, "--ids", "1,300,301", "--ctx", "2"}), 1, "holds 2 tokens");
  const json cut =
      flywheel_command({"embed", m.path, "--ids", "1,300,301", "--ctx", "2", "--truncate", "--json"}).parsed();
  CHECK(cut == flywheel_command({"embed", m.path, "--ids", "1,300", "--json"}).parsed());
}

TEST_CASE("embed and rerank run encoders, which refuse to generate") {
  const temp_folder folder;
  const std::string path = (folder / "reranker.gguf").string();
  tiny_encoder m;
  m.scores = 1;
  write_tiny_encoder(path, m);
  const json rows = flywheel_command({"embed", path, "--text", "ab", "--pooling", "none", "--json"}).parsed();
  REQUIRE(rows.at("embeddings").at(0).size() == 4);  // [CLS] a b [SEP]
  const json first = flywheel_command({"embed", path, "--text", "ab", "--pooling", "cls", "--json"}).parsed();
  CHECK(rows.at("embeddings").at(0).at(0) == first.at("embeddings").at(0));

  const arguments question = {"rerank", path,     "--query", "what",   "--text",
                              "fox",    "--text", "the dog", "--text", "fish"};
  arguments with_json = question;
  with_json.emplace_back("--json");
  const json ranked = flywheel_command(with_json).parsed();
  const auto scores = ranked.at("scores").get<std::vector<double>>();
  REQUIRE(scores.size() == 3);
  REQUIRE(ranked.at("ranking").size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const json& place = ranked.at("ranking").at(i);
    CHECK(place.at("score").get<double>() == scores.at(place.at("index").get<std::size_t>()));
    if (i > 0) CHECK(place.at("score").get<double>() <= ranked.at("ranking").at(i - 1).at("score").get<double>());
  }
  const finished shown = flywheel_command(question);
  CHECK(shown.code == 0);
  const std::vector<std::string> names = {"fox", "the dog", "fish"};
  const auto best = ranked.at("ranking").at(0).at("index").get<std::size_t>();
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(shown.out.find(names[i]) != std::string::npos);
    CHECK(shown.out.find(names[best]) <= shown.out.find(names[i]));
  }
  check_failure(flywheel_command({"run", path, "-p", "a"}), 1, "flywheel embed");
  check_failure(flywheel_command({"rerank", tiny_file().path, "--query", "a", "--text", "b"}), 1, "yes");
}

TEST_CASE("perplexity of a trained model is the published one") {
  FLYWHEEL_REQUIRE_SHARED(golden_file, "family/golden/perplexity.json");
  const std::filesystem::path root = golden_file.parent_path().parent_path();
  const std::string model = (root / "models/tiny-draft/gguf/tiny-draft-f16.gguf").string();
  const json golden = json::parse(slurp(golden_file)).at("models").at("draft").at("legal");
  const std::string legal = (root / "text/legal/eval.txt").string();
  const json j = flywheel_command({"perplexity", model, "--file", legal, "--json"}).parsed();
  CHECK(j.at("tokens_scored") == golden.at("tokens_scored"));
  CHECK(j.at("perplexity").get<double>() == Approx(golden.at("perplexity").get<double>()).epsilon(1e-3));
  CHECK(j.at("bits_per_byte").get<double>() == Approx(golden.at("bits_per_byte").get<double>()).epsilon(1e-3));
  // README of the data: llama-perplexity -c 256, the first 40 chunks.
  const std::string general = (root / "text/general/eval.txt").string();
  const json half =
      flywheel_command({"perplexity", model, "--file", general, "--second-half", "--windows", "40", "--json"}).parsed();
  CHECK(half.at("perplexity").get<double>() == Approx(33.3986).epsilon(1e-3));
}
