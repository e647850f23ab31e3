// run: prompts, sampling options, streams, JSON, the interactive mode, Ctrl-C.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {
struct tiny : tiny_file {
  using tiny_file::tiny_file;
  [[nodiscard]] arguments with(arguments more) const {
    arguments all = {"run", path};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};
}  // namespace

TEST_CASE("run answers with one JSON object") {
  const tiny m;
  const json j = flywheel_command(m.with({"-p", "hello", "-n", "5", "--greedy", "--ignore-eos", "--json"})).parsed();
  CHECK(j.at("prompt_ids").at(0) == 1);
  CHECK(j.at("ids").size() == 5);
  CHECK(j.at("text").is_string());
  CHECK(j.at("stop") == "length");
  CHECK(j.at("timings").at("prefill_tps") > 0);
  CHECK(j.at("timings").at("decode_tps") > 0);
}

TEST_CASE("run with ids takes them as they are, and the same prompt gives the same tokens") {
  const tiny m;
  const arguments rest = {"-n", "6", "--greedy", "--ignore-eos", "--json"};
  arguments text = m.with({"-p", "hello"});
  text.insert(text.end(), rest.begin(), rest.end());
  const json from_text = flywheel_command(text).parsed();
  std::string list;
  for (const json& id : from_text.at("prompt_ids")) list += (list.empty() ? "" : ",") + id.dump();
  for (const char* threads : {"1", "2", "3"}) {
    arguments ids = m.with({"--ids", list, "-t", threads});
    ids.insert(ids.end(), rest.begin(), rest.end());
    const json from_ids = flywheel_command(ids).parsed();
    CHECK(from_ids.at("prompt_ids") == from_text.at("prompt_ids"));
    CHECK(from_ids.at("ids") == from_text.at("ids"));
  }
}

TEST_CASE("run streams the text that its JSON holds") {
  const tiny m;
  const arguments options = {"-p", "the", "-n", "20", "--seed", "7", "--ignore-eos"};
  const finished plain = flywheel_command(m.with(options));
  CHECK(plain.code == 0);
  CHECK(plain.err.empty());
  arguments as_json = options;
  as_json.push_back("--json");
  const json j = flywheel_command(m.with(as_json)).parsed();
  CHECK(j.at("seed") == 7);
  // A random model emits half UTF-8 sequences; both ways they are replaced alike.
  CHECK(json::parse(json(plain.out).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>() ==
        j.at("text").get<std::string>() + (j.at("text").get<std::string>().ends_with('\n') ? "" : "\n"));
}

TEST_CASE("the prompt can come from a file or stdin, and may hold anything") {
  const tiny m;
  spill(m.folder / "prompt.txt", "the hello");
  const auto prompt_of = [&](const arguments& how, const std::string& input = {}) {
    arguments all = m.with({"-n", "0", "--json"});
    all.insert(all.end(), how.begin(), how.end());
    return flywheel_command(all, input).parsed().at("prompt_ids");
  };
  const json wanted = prompt_of({"-p", "the hello"});
  CHECK(wanted.size() > 1);
  CHECK(prompt_of({"-f", (m.folder / "prompt.txt").string()}) == wanted);
  CHECK(prompt_of({"-f", "-"}, "the hello") == wanted);
  CHECK(prompt_of({"-p", ""}) == json::array({1}));  // the start token alone
  for (const std::string odd : {"-n", "--json", "[INST] a [/INST]", "a,b", "{}", "-5", "%d", "a b\nc"}) {
    INFO(odd);
    const json ids =
        flywheel_command({"tokenize", m.path, "--text", odd, "--add-special", "--json"}).parsed().at("ids");
    CHECK(prompt_of({"-p", odd}) == ids);
  }
  CHECK(prompt_of({"-p", "</s>", "--parse-special"}).back() == 2);
  CHECK(prompt_of({"-p", "</s>"}).back() != 2);
}

TEST_CASE("an empty prompt without a start token is wrong usage") {
  temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(
      path, {}, [](io::metadata& meta, std::vector<tiny_tensor>&) { meta.set("tokenizer.ggml.add_bos_token", false); });
  check_failure(flywheel_command({"run", path, "-p", ""}), 2, "no tokens");
  check_failure(flywheel_command({"run", path, "--ids", ""}), 2, "--ids");
}

TEST_CASE("ids out of the vocabulary and prompts longer than the context are failures") {
  const tiny m;
  check_failure(flywheel_command(m.with({"--ids", "1,320"})), 1, "320");
  check_failure(flywheel_command(m.with({"--ids", "1,2,3,4,5,6", "--ctx", "4"})), 1, "holds 4 tokens, 6 were given");
}

TEST_CASE("a full context ends the text, sliding goes on") {
  const tiny m;
  const arguments options = {"-p", "a", "-n", "40", "--ctx", "16", "--greedy", "--ignore-eos", "--json"};
  const json refused = flywheel_command(m.with(options)).parsed();
  CHECK(refused.at("stop") == "context_full");
  CHECK(refused.at("ids").size() < 40);
  arguments sliding = options;
  sliding.push_back("--slide");
  const json slid = flywheel_command(m.with(sliding)).parsed();
  CHECK(slid.at("stop") == "length");
  CHECK(slid.at("ids").size() == 40);
  const json until_full =
      flywheel_command(m.with({"-p", "a", "-n", "-1", "--ctx", "16", "--ignore-eos", "--json"})).parsed();
  CHECK(until_full.at("stop") == "context_full");
}

TEST_CASE("sampling options reach the sampler") {
  const tiny m;
  const auto ids_of = [&](const arguments& how) {
    arguments all = m.with({"-p", "the", "-n", "8", "--ignore-eos", "--json"});
    all.insert(all.end(), how.begin(), how.end());
    return flywheel_command(all).parsed().at("ids");
  };
  const json greedy = ids_of({"--greedy"});
  CHECK(ids_of({"--temp", "0"}) == greedy);
  CHECK(ids_of({"--top-k", "1", "--seed", "3"}) == greedy);
  CHECK(ids_of({"--seed", "5", "--temp", "1.5"}) == ids_of({"--seed", "5", "--temp", "1.5"}));
  CHECK(ids_of({"--seed", "5", "--temp", "1.5", "--top-k", "0"}) != greedy);
  // A bias this large decides alone; forbidding the token brings back another.
  CHECK(ids_of({"--greedy", "--logit-bias", "300=1000"}) == json(std::vector<int>(8, 300)));
  const std::string first = greedy.at(0).dump();
  CHECK(ids_of({"--greedy", "--logit-bias", first + "=-inf", "--logit-bias", "301=0"}).at(0) != greedy.at(0));
  CHECK(ids_of({"--greedy", "--logit-bias", "300=1000", "--frequency-penalty", "600"}) !=
        json(std::vector<int>(8, 300)));
}

TEST_CASE("log-probabilities are shown on request") {
  const tiny m;
  const json j =
      flywheel_command(m.with({"-p", "the", "-n", "4", "--greedy", "--ignore-eos", "--logprobs", "3", "--json"}))
          .parsed();
  REQUIRE(j.at("logprobs").size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    const json& step = j.at("logprobs").at(i);
    CHECK(step.at("id") == j.at("ids").at(i));
    CHECK(step.at("logprob") < 0);
    REQUIRE(step.at("top").size() == 3);
    CHECK(step.at("top").at(0).at("id") == step.at("id"));  // greedy takes the most probable
    CHECK(step.at("top").at(0).at("logprob") >= step.at("top").at(1).at("logprob"));
  }
  const finished text =
      flywheel_command(m.with({"-p", "the", "-n", "4", "--greedy", "--ignore-eos", "--logprobs", "3"}));
  CHECK(text.code == 0);
  CHECK(text.out.find("logprob") != std::string::npos);
}

TEST_CASE("a stop text ends the generation before it") {
  const tiny m;
  const auto pieces = tiny_pieces(320);
  const std::string piece = "hello";
  const auto id = std::find(pieces.begin(), pieces.end(), piece) - pieces.begin();
  const std::string bias = std::to_string(id) + "=1000";  // says the same piece again and again
  const json free =
      flywheel_command(m.with({"-p", "a", "-n", "4", "--greedy", "--logit-bias", bias, "--json"})).parsed();
  REQUIRE(free.at("text").get<std::string>().find(piece + piece) != std::string::npos);
  const json stopped = flywheel_command(m.with({"-p", "a", "-n", "4", "--greedy", "--logit-bias", bias, "--stop",
                                                piece + piece, "--json"}))
                           .parsed();
  CHECK(stopped.at("stop") == "stop_text");
  CHECK(stopped.at("text") == "");
}

TEST_CASE("the end token ends the text") {
  const tiny m;
  const json j =
      flywheel_command(m.with({"-p", "a", "-n", "9", "--greedy", "--logit-bias", "2=1000", "--json"})).parsed();
  CHECK(j.at("stop") == "end_of_text");
  CHECK(j.at("ids").empty());
  CHECK(j.at("text") == "");
}

TEST_CASE("a model without a vocabulary runs on ids alone") {
  const tiny m({.vocabulary = false});
  const json j = flywheel_command(m.with({"--ids", "5,6,7", "-n", "3", "--greedy", "--json"})).parsed();
  CHECK(j.at("ids").size() == 3);
  CHECK(j.at("text") == "");
  check_failure(flywheel_command(m.with({"-p", "a"})), 1, "no vocabulary");
}

TEST_CASE("without a model the built-in one speaks") {
  const json j = flywheel_command({"run", "-p", "The captain", "-n", "6", "--greedy", "--json"}).parsed();
  CHECK(j.at("ids").size() == 6);
  CHECK(!j.at("text").get<std::string>().empty());
}

TEST_CASE("the interactive mode continues after every line") {
  const tiny m;
  const arguments options = m.with({"-i", "-n", "3", "--greedy", "--ignore-eos"});
  const finished talk = flywheel_command(options, "/help\nhello\n/nonsense\n/clear\nhello\n//x\n/quit\nnever\n");
  INFO(talk.out << talk.err);
  CHECK(talk.code == 0);
  CHECK(talk.out.find("/clear") != std::string::npos);
  CHECK(talk.out.find("/nonsense: no such command") != std::string::npos);
  // After /clear the same line gives the same text.
  const finished once = flywheel_command(options, "hello\n");
  CHECK(once.code == 0);
  const std::size_t first = talk.out.find(once.out);
  REQUIRE(first != std::string::npos);
  CHECK(talk.out.find(once.out, first + once.out.size()) != std::string::npos);
  // Without it the line continues the text that is there.
  const finished twice = flywheel_command(options, "hello\nhello\n");
  CHECK(twice.out != once.out + once.out);
  const finished full =
      flywheel_command(m.with({"-i", "-n", "50", "--ctx", "8", "--ignore-eos"}), "hello\n/clear\nhello\n");
  CHECK(full.code == 0);
  CHECK(full.out.find("the context is full") != std::string::npos);
  check_failure(flywheel_command(m.with({"-i", "-p", "a"})), 2, "--interactive");
}

TEST_CASE("a full context ends the text and says so") {
  const tiny m;
  const finished f = flywheel_command(m.with({"-p", "hello", "-n", "-1", "--ctx", "8", "--ignore-eos"}));
  CHECK(f.code == 0);
  CHECK(f.err == "flywheel: warning: the context of 8 tokens is full; --ctx makes it larger, --slide goes on\n");
}

TEST_CASE("Ctrl-C stops the generation and says so in the exit code") {
  const tiny m({.hidden = 64, .layers = 2, .ffn = 256, .context = 65536});
  process p(m.with({"-p", "hello", "-n", "-1", "--ctx", "65536", "--ignore-eos"}));
  for (int i = 0; i < 1000 && p.out_so_far().empty(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  REQUIRE(!p.out_so_far().empty());
  p.send(SIGINT);
  const finished f = p.wait();
  CHECK(f.code == 130);
  CHECK(f.out.back() == '\n');
  CHECK(f.err.empty());
}
