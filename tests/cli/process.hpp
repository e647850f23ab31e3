// Runs the built command as another process, as a user would.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace flywheel::test {

using json = nlohmann::json;
using arguments = std::vector<std::string>;

struct finished {
  int code = -1;  ///< Exit code; 128 + signal when a signal ended it.
  std::string out;
  std::string err;

  [[nodiscard]] json parsed() const {
    INFO("stdout: " << out << "\nstderr: " << err);
    REQUIRE(code == 0);
    return json::parse(out);
  }
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void spill(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A started process; its output goes to files, so that it never blocks.
class process {
 public:
  explicit process(const arguments& args, const std::string& input = {},
                   const std::vector<std::pair<std::string, std::string>>& environment = {},
                   const std::vector<int>& closed_streams = {}) {
    spill(folder_ / "in", input);
    std::vector<std::string> words = {FLYWHEEL_CLI};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::string in = (folder_ / "in").string(), out = (folder_ / "out").string(),
                      err = (folder_ / "err").string();
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ != 0) return;
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::dup2(::open(in.c_str(), O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    for (const int stream : closed_streams) ::close(stream);
    ::execv(FLYWHEEL_CLI, argv.data());
    ::_exit(127);
  }
  ~process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  process(const process&) = delete;
  process& operator=(const process&) = delete;

  void send(int signal) const {
    REQUIRE(pid_ > 0);  // kill(-1, ...) would reach every process of this user
    ::kill(pid_, signal);
  }
  [[nodiscard]] std::string out_so_far() const { return slurp(folder_ / "out"); }

  finished wait() {
    int status = 0;
    REQUIRE(::waitpid(pid_, &status, 0) == pid_);
    return ended(status);
  }

  /// Sends a signal after half a second, and again until the process ends: on a busy machine the first one may come
  /// before it matters.
  finished wait_sending(int signal) {
    int status = 0;
    pid_t found = 0;
    for (int i = 0; found == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(i == 0 ? 500 : 200));
      found = ::waitpid(pid_, &status, WNOHANG);
      if (found == 0) send(i < 100 ? signal : SIGKILL);
    }
    REQUIRE(found == pid_);
    return ended(status);
  }

 private:
  finished ended(int status) {
    pid_ = -1;
    finished f;
    f.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    f.out = slurp(folder_ / "out");
    f.err = slurp(folder_ / "err");
    return f;
  }

  temp_folder folder_;
  pid_t pid_ = -1;
};

inline finished flywheel_command(const arguments& args, const std::string& input = {},
                                 const std::vector<std::pair<std::string, std::string>>& environment = {}) {
  return process(args, input, environment).wait();
}

/// Checks the contract of every failure: the code, nothing on stdout, one line on stderr that starts alike and holds
/// `part`.
inline void check_failure(const finished& f, int code, const std::string& part) {
  INFO("stdout: " << f.out << "\nstderr: " << f.err);
  CHECK(f.code == code);
  CHECK(f.out.empty());
  CHECK(f.err.rfind("flywheel: error: ", 0) == 0);
  CHECK(std::count(f.err.begin(), f.err.end(), '\n') == 1);
  CHECK(!f.err.empty());
  CHECK(f.err.back() == '\n');
  CHECK(f.err.find(part) != std::string::npos);
}

}  // namespace flywheel::test
