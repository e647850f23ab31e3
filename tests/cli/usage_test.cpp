// Help, wrong usage, and the shape of error messages.
#include <sys/stat.h>

#include <string>

#include "cli/process.hpp"
#include "cli/tiny_file.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel::test;

namespace {
const char* const commands[] = {
#define FLYWHEEL_COMMAND(name, summary) #name,
#include "src/cli/commands.inc"
#undef FLYWHEEL_COMMAND
};
}  // namespace

TEST_CASE("every command has a help page with an example") {
  const finished all = flywheel_command({"--help"});
  CHECK(all.code == 0);
  CHECK(all.err.empty());
  for (const std::string name : commands) {
    INFO(name);
    CHECK(all.out.find("  " + name + " ") != std::string::npos);
    const finished one = flywheel_command({name, "--help"});
    CHECK(one.code == 0);
    CHECK(one.err.empty());
    CHECK(one.out.find("Example") != std::string::npos);
    CHECK(one.out.find("flywheel " + name) != std::string::npos);
    CHECK(one.out.find("--json") != std::string::npos);
  }
}

TEST_CASE("the version is told") {
  const finished f = flywheel_command({"--version"});
  CHECK(f.code == 0);
  CHECK(f.out.rfind("flywheel 0.", 0) == 0);
}

TEST_CASE("without a command the help page appears and the exit code says wrong usage") {
  const finished f = flywheel_command({});
  CHECK(f.code == 2);
  CHECK(f.out.empty());
  CHECK(f.err.find("perplexity") != std::string::npos);
}

TEST_CASE("wrong usage exits with 2 and one line that says what to do") {
  check_failure(flywheel_command({"nonsense"}), 2, "nonsense: unknown command; see 'flywheel --help'");
  check_failure(flywheel_command({"insect"}), 2, "did you mean 'inspect'?");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--tmp", "1"}), 2, "did you mean '--temp'?");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--zzzzzz=1"}), 2,
                "--zzzzzz: unknown option; see 'flywheel run --help'");
  check_failure(flywheel_command({"run", "x", "y", "-p", "a"}), 2, "one argument too many");
  check_failure(flywheel_command({"--nonsense"}), 2, "--nonsense");
  check_failure(flywheel_command({"inspect"}), 2, "FILE");
  check_failure(flywheel_command({"tokenize", "x"}), 2, "--text");
  check_failure(flywheel_command({"tokenize", "x", "--text", "a", "--file", "b"}), 2, "--file");
  check_failure(flywheel_command({"detokenize", "x"}), 2, "--ids");
  check_failure(flywheel_command({"logits", "x", "--ids", "1"}), 2, "--out");
  check_failure(flywheel_command({"logits", "x", "--ids", "1", "--every", "0", "--out", "y"}), 2, "--every");
  check_failure(flywheel_command({"perplexity", "x"}), 2, "--file");
  check_failure(flywheel_command({"perplexity", "x", "--file", "y", "--ctx", "1"}), 2, "--ctx");
  check_failure(flywheel_command({"embed", "x"}), 2, "--text");
  check_failure(flywheel_command({"embed", "x", "--text", "a", "--pooling", "max"}), 2, "--pooling");
  check_failure(flywheel_command({"rerank", "x", "--text", "a"}), 2, "--query");
  check_failure(flywheel_command({"rerank", "x", "--query", "a"}), 2, "--text");
  check_failure(flywheel_command({"dequantize", "x", "y"}), 2, "--out");
  check_failure(flywheel_command({"conformance"}), 2, "DIR");
  check_failure(flywheel_command({"conformance", ".", "poems"}), 2, "poems");
  check_failure(flywheel_command({"info", "--isa", "z80"}), 2, "z80");
  check_failure(flywheel_command({"info", "-t", "0"}), 2, "--threads");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--seed", "-1"}), 2, "--seed");
  check_failure(flywheel_command({"synth", "tiny", "f16", "x", "--seed", "-1"}), 2, "--seed");
}

TEST_CASE("run needs a prompt when nobody can type one") {
  check_failure(flywheel_command({"run", "x"}), 2, "no prompt");
  check_failure(flywheel_command({"run", "x", "--json"}), 2, "no prompt");
}

TEST_CASE("options of run that contradict each other or make no sense are wrong usage") {
  check_failure(flywheel_command({"run", "x", "-p", "a", "--ids", "1"}), 2, "--ids");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--greedy", "--temp", "1"}), 2, "--temp");
  check_failure(flywheel_command({"run", "x", "-p", "a", "-n", "-5"}), 2, "--max-tokens");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--temp", "hot"}), 2, "--temp");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--temp", "nan"}), 2, "temperature");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--top-p", "2"}), 2, "top_p");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--kv-type", "q4"}), 2, "--kv-type");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--logit-bias", "5"}), 2, "--logit-bias 5");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--logit-bias", "5=high"}), 2, "'high' is not a number");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--logit-bias", "x=1"}), 2, "'x' is not a token id");
  check_failure(flywheel_command({"run", "x", "-p", "a", "--keep", "3"}), 2, "--slide");
}

TEST_CASE("lists of ids are checked before anything is loaded") {
  check_failure(flywheel_command({"run", "x", "--ids", "1,two,3"}), 2, "--ids: 'two' is not a token id");
  check_failure(flywheel_command({"run", "x", "--ids", "1,-2"}), 2, "'-2'");
  check_failure(flywheel_command({"logits", "x", "--ids", "1;2", "--out", "y"}), 2, "'1;2'");
  check_failure(flywheel_command({"logits", "x", "--ids", "", "--out", "y"}), 2, "--ids");
  check_failure(flywheel_command({"logits", "x", "--ids", "99999999999", "--out", "y"}), 2, "99999999999");
  check_failure(flywheel_command({"detokenize", "x", "--ids", "1.5"}), 2, "'1.5'");
  check_failure(flywheel_command({"detokenize", "x", "--ids", "@/no/such/list"}), 1, "/no/such/list");
}

TEST_CASE("a missing model file is a failure that names the file") {
  const std::string missing = "/no/such/model.gguf";
  for (const arguments& args : {arguments{"run", missing, "-p", "a"},
                                {"inspect", missing},
                                {"tokenize", missing, "--text", "a"},
                                {"detokenize", missing, "--ids", "1"},
                                {"logits", missing, "--ids", "1", "--out", "/tmp/never"},
                                {"embed", missing, "--text", "a"},
                                {"dequantize", missing, "w", "--out", "/tmp/never"}})
    check_failure(flywheel_command(args), 1, missing);
}

TEST_CASE("an error line holds nothing that moves a terminal") {
  const finished f = flywheel_command({"inspect", "no\n\x1b[2Jfile"});
  check_failure(f, 1, "no\\n\\x1b[2Jfile");
}

TEST_CASE("info reports the processor and one selected instruction set") {
  const json j = flywheel_command({"info", "--json", "-t", "3"}).parsed();
  CHECK(j.at("threads") == 3);
  CHECK(!j.at("cpu").get<std::string>().empty());
  int selected = 0;
  bool generic = false;
  for (const json& c : j.at("clusters")) {
    selected += c.at("selected").get<bool>();
    if (c.at("selected").get<bool>()) CHECK((c.at("built").get<bool>() && c.at("detected").get<bool>()));
    generic = generic || c.at("name") == "generic";
  }
  CHECK(selected == 1);
  CHECK(generic);
  const json forced = flywheel_command({"info", "--json"}, {}, {{"FLYWHEEL_ISA", "generic"}}).parsed();
  CHECK(forced.at("isa") == "generic");
  CHECK(forced.at("isa_overridden") == true);
  const finished text = flywheel_command({"info", "--isa", "generic"});
  CHECK(text.code == 0);
  CHECK(text.out.find("generic") != std::string::npos);
  CHECK(text.out.find("\x1b") == std::string::npos);
}

TEST_CASE("a full disk is noticed") {
  if (!std::filesystem::exists("/dev/full")) return;
  const std::string shell = std::string(FLYWHEEL_CLI) + " info > /dev/full 2> /dev/null";
  const int status = std::system(shell.c_str());
  CHECK(WEXITSTATUS(status) == 1);
}

TEST_CASE("only files that can be replaced are replaced") {
  const tiny_file m;
  const std::string null = (m.folder / "null").string();
  std::filesystem::create_symlink("/dev/null", null);
  check_failure(flywheel_command({"synth", "tiny", "f16", null}), 1, "not a regular file");
  CHECK(flywheel_command({"logits", m.path, "--ids", "1", "--out", null}).code == 0);
  CHECK(std::filesystem::is_symlink(null));
  check_failure(flywheel_command({"logits", m.path, "--ids", "1", "--out", "-"}), 2, "--out");
}

TEST_CASE("closed standard streams are errors, and files stay whole") {
  const tiny_file m;
  const std::string out = (m.folder / "out").string();
  process p({"logits", m.path, "--ids", "1", "--out", out}, {}, {}, {STDOUT_FILENO});
  check_failure(p.wait(), 1, "stdout: cannot write");
  const std::size_t whole = std::filesystem::file_size(out);
  process silent({"logits", m.path, "--ids", "1", "--out", out}, {}, {}, {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO});
  CHECK(silent.wait().code == 1);
  CHECK(std::filesystem::file_size(out) == whole);
  process prompt({"run", m.path, "-f", "-"}, {}, {}, {STDIN_FILENO});
  check_failure(prompt.wait(), 1, "stdin: cannot read");
}

#if !FLYWHEEL_SANITIZED  // it fills half a gigabyte
TEST_CASE("a text that never ends is refused") {
  const tiny_file m;
  check_failure(flywheel_command({"tokenize", m.path, "--file", "/dev/zero"}), 1, "larger than 512 MiB");
}
#endif

TEST_CASE("Ctrl-C while output is blocked is no error of the output") {
  const tiny_file m;
  const std::string pipe = (m.folder / "pipe").string();
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  process p({"logits", m.path, "--ids", "1", "--out", pipe});  // nobody reads it
  const finished f = p.wait_sending(SIGINT);
  CHECK(f.code == 130);
  CHECK(f.err.empty());
}
