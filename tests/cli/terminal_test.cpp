// What only happens on a terminal: progress, colours, the prompt of the interactive mode, Ctrl-C there.
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include <chrono>
#include <string>

#include "cli/process.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// Says that the test is skipped, and returns, where the system gives no pseudo terminals (a container without devpts).
#define NEEDS_TERMINAL()                                                \
  if (const int probe = ::posix_openpt(O_RDWR | O_NOCTTY); probe < 0) { \
    WARN("skipped: this system gives no pseudo terminals");             \
    return;                                                             \
  } else                                                                \
    ::close(probe)

/// The command on a pseudo terminal of 80 columns.
class terminal {
 public:
  explicit terminal(const arguments& args, const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    std::vector<std::string> words = {FLYWHEEL_CLI};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    fd_ = ::posix_openpt(O_RDWR | O_NOCTTY);
    REQUIRE(fd_ >= 0);
    REQUIRE(::grantpt(fd_) == 0);
    REQUIRE(::unlockpt(fd_) == 0);
    winsize size{};
    size.ws_row = 24;
    size.ws_col = 80;
    ::ioctl(fd_, TIOCSWINSZ, &size);
    const std::string name = ::ptsname(fd_);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ != 0) return;
    ::setsid();
    const int side = ::open(name.c_str(), O_RDWR);
    ::ioctl(side, TIOCSCTTY, 0);
    for (const int stream : {0, 1, 2}) ::dup2(side, stream);
    ::setenv("TERM", "xterm", 1);
    ::unsetenv("NO_COLOR");
    for (const auto& [key, value] : environment) ::setenv(key.c_str(), value.c_str(), 1);
    ::execv(FLYWHEEL_CLI, argv.data());
    ::_exit(127);
  }
  ~terminal() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(fd_);
  }
  terminal(const terminal&) = delete;
  terminal& operator=(const terminal&) = delete;

  void type(const std::string& text) const { REQUIRE(::write(fd_, text.data(), text.size()) > 0); }
  /// Reads until `text` appears behind what was waited for before.
  void expect(const std::string& text) {
    while (true) {
      if (const std::size_t at = seen_.find(text, from_); at != std::string::npos) {
        from_ = at + text.size();
        return;
      }
      INFO("waiting for '" << text << "' in " << seen_);
      REQUIRE(more());
    }
  }
  /// Exit code; the rest of the output is in seen().
  int wait() {
    while (more()) {
    }
    int status = 0;
    REQUIRE(::waitpid(std::exchange(pid_, -1), &status, 0) >= 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  [[nodiscard]] const std::string& seen() const { return seen_; }

 private:
  bool more() {
    pollfd waiting{fd_, POLLIN, 0};
    if (::poll(&waiting, 1, 60'000) <= 0) return false;
    char piece[4096];
    const ssize_t got = ::read(fd_, piece, sizeof piece);
    if (got <= 0) return false;
    seen_.append(piece, static_cast<std::size_t>(got));
    return true;
  }
  int fd_ = -1;
  pid_t pid_ = -1;
  std::string seen_;
  std::size_t from_ = 0;
};

}  // namespace

TEST_CASE("on a terminal run asks for lines, and Ctrl-C stops the model but not the program") {
  NEEDS_TERMINAL();
  const temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(path, {.context = 4096});
  terminal t({"run", path, "-n", "-1", "--slide", "--ignore-eos", "--greedy"});
  t.expect("/help for help");
  t.expect("> ");
  t.type("\x03");
  t.expect("/quit or Ctrl-D leaves");
  t.expect("> ");
  t.type("hello\n");
  t.expect("hello\r\n");  // the terminal's echo; then the text comes
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  t.type("\x03");
  t.expect("(stopped)");
  t.expect("> ");
  t.type("/help\n");
  t.expect("forget the text");
  t.expect("> ");
  t.type("\x04");
  CHECK(t.wait() == 0);
}

TEST_CASE("a long measurement shows a bar that goes away, and Ctrl-C ends it") {
  NEEDS_TERMINAL();
  const temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(path, {.hidden = 64, .layers = 4, .ffn = 256});
  std::string text;
  for (int i = 0; i < 60'000; ++i) text += "hello the world ";
  spill(folder / "text.txt", text);
  const arguments args = {"perplexity", path, "--file", (folder / "text.txt").string(), "--ctx", "16"};
  terminal t(args);
  t.expect("perplexity  [");
  t.expect("% ");
  t.expect(" left");
  t.type("\x03");
  CHECK(t.wait() == 130);
  CHECK(t.seen().ends_with("\r\x1b[K"));
  for (std::size_t at = 0, end = 0; at < t.seen().size(); at = end + 1) {  // no line is wider than the terminal
    end = std::min(t.seen().find('\r', at), t.seen().size());
    CHECK(end - at <= 80 + 7);  // bytes: the clearing sequence, an ellipsis, the echo of Ctrl-C
  }
  terminal dumb(args, {{"TERM", "dumb"}});
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  dumb.type("\x03");
  CHECK(dumb.wait() == 130);
  CHECK(dumb.seen().find('[') == std::string::npos);
}

TEST_CASE("colours appear on a terminal and NO_COLOR turns them off") {
  NEEDS_TERMINAL();
  const temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(path);
  terminal colour({"inspect", path});
  CHECK(colour.wait() == 0);
  CHECK(colour.seen().find("\x1b[1mMetadata\x1b[0m") != std::string::npos);
  terminal plain({"inspect", path}, {{"NO_COLOR", "1"}});
  CHECK(plain.wait() == 0);
  CHECK(plain.seen().find('\x1b') == std::string::npos);
}

TEST_CASE("generated text cannot move the cursor") {
  NEEDS_TERMINAL();
  const temp_folder folder;
  const std::string path = (folder / "tiny.gguf").string();
  write_tiny_model(path);
  // 30 is the token of the byte 0x1B: Escape.
  terminal t({"run", path, "-p", "a", "-n", "3", "--greedy", "--logit-bias", "30=1000"});
  CHECK(t.wait() == 0);
  CHECK(t.seen().find("\\x1b\\x1b\\x1b") != std::string::npos);
  CHECK(t.seen().find('\x1b') == std::string::npos);
}
