#include "device_conformance/isolation.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

namespace flywheel::kit {
namespace {

using clock = std::chrono::steady_clock;

/// A trace that both processes see.
class shared_trace {
 public:
  shared_trace() {
    void* memory = ::mmap(nullptr, sizeof(trace), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) cli::fail(errc::out_of_memory, "mmap", std::strerror(errno));
    trace_ = new (memory) trace;
  }
  ~shared_trace() { ::munmap(trace_, sizeof(trace)); }
  shared_trace(const shared_trace&) = delete;
  shared_trace& operator=(const shared_trace&) = delete;
  trace& operator*() const { return *trace_; }
  trace* operator->() const { return trace_; }

 private:
  trace* trace_;
};

void send_line(int pipe, const json& message) {
  const std::string text = cli::dump(message) + "\n";
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(pipe, text.data() + at, text.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) ::_exit(1);  // nobody listens
    at += static_cast<std::size_t>(n);
  }
}

/// What the child does: checks from `first` on. Ends with the process.
[[noreturn]] void run_child(const settings& s, std::span<const check> checks, std::size_t first, trace& t, int pipe) {
  bench b(s, t);
  try {
    (void)b.device();
  } catch (const bad_result& e) {
    send_line(pipe, {{"cannot_open", e.why().to_string()}});
    ::_exit(0);
  }
  for (std::size_t i = first; i < checks.size(); ++i) {
    send_line(pipe, {{"begin", i}});
    b.note.clear();
    b.facts = json::object();
    json end = {{"end", i}, {"outcome", "passed"}};
    const clock::time_point begin = clock::now();
    const auto otherwise = [&](const char* outcome, const char* why) {
      end["outcome"] = outcome;
      end["message"] = why;
    };
    try {
      checks[i].run(b);
      end["message"] = b.note;
    } catch (const not_applicable& e) {
      otherwise("skipped", e.what());
    } catch (const hang& e) {
      otherwise("failed", e.what());
      end["hung"] = true;
    } catch (const std::exception& e) {
      otherwise("failed", e.what());
    }
    end["seconds"] = std::chrono::duration<double>(clock::now() - begin).count();
    end["facts"] = b.facts;
    send_line(pipe, end);
    // What was in flight then may still be: the checks behind it get a new process.
    if (end["outcome"] == "failed") ::_exit(0);
  }
  send_line(pipe, {{"begin", checks.size()}});  // what follows is the device's end
  b.close();
  send_line(pipe, {{"closed", true}});
  ::_exit(0);
}

/// The parent's view of one child.
struct child_state {
  std::size_t current = 0;  ///< The check that has begun.
  bool failed = false;      ///< And said so.
  bool hung = false, closed = false;
  std::string cannot_open;
};

constexpr check closing = {"", "device.close", "the device closes", true, nullptr};

std::string during(const trace& t) {
  const char* call = t.call;
  return call == nullptr ? std::string(", outside of the device's functions") : std::string(", in ") + call;
}

class runner {
 public:
  runner(const settings& s, const std::function<void(const verdict&)>& heard) : settings_(s), heard_(heard) {}

  /// One group.
  void run(std::span<const check> checks) {
    for (std::size_t next = 0; next < checks.size() && out.cannot_open.empty();) next = run_from(checks, next);
  }

  run_result out;

 private:
  void tell(verdict v) {
    heard_(v);
    out.verdicts.push_back(std::move(v));
  }

  /// Runs checks from `first` on in a child; returns the first that still has to run.
  std::size_t run_from(std::span<const check> checks, std::size_t first) {
    const shared_trace t;
    int ends[2];
    if (::pipe(ends) != 0) cli::fail(errc::io, "pipe", std::strerror(errno));
    std::fflush(stdout);
    std::fflush(stderr);
    const pid_t pid = ::fork();
    if (pid < 0) cli::fail(errc::io, "fork", std::strerror(errno));
    if (pid == 0) {
      ::close(ends[0]);
      ::dup2(2, 1);  // what a device prints is not part of the output
      try {
        run_child(settings_, checks, first, *t, ends[1]);
      } catch (...) {
        ::_exit(1);
      }
    }
    ::close(ends[1]);
    child_state state;
    state.current = first;
    const bool stuck = !listen(checks, ends[0], *t, state);
    ::close(ends[0]);
    if (stuck) ::kill(pid, SIGKILL);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!state.cannot_open.empty()) {
      out.cannot_open = state.cannot_open;
      return checks.size();
    }
    if (state.closed) return checks.size();
    if (state.hung) return skip_rest(checks, state.current + 1);
    if (state.failed) return state.current + 1;
    const std::string where = state.current < checks.size() ? std::string("in check ") + checks[state.current].id
                                                            : std::string("when it was closed");
    std::string message;
    if (stuck)
      message = "the device hangs " + where + during(*t) + ": nothing happened for " +
                std::to_string(static_cast<int>(patience())) + " s";
    else if (WIFSIGNALED(status))
      message = "the device crashed " + where + during(*t) + ": " + ::strsignal(WTERMSIG(status)) + " (signal " +
                std::to_string(WTERMSIG(status)) + ")";
    else
      message = "the device crashed " + where + during(*t) + ": it ended the process with code " +
                std::to_string(WEXITSTATUS(status));
    tell({state.current < checks.size() ? &checks[state.current] : &closing, outcome::failed, message, 0});
    return stuck ? skip_rest(checks, state.current + 1) : state.current + 1;
  }

  std::size_t skip_rest(std::span<const check> checks, std::size_t from) {
    for (std::size_t i = from; i < checks.size(); ++i)
      tell({&checks[i], outcome::failed, "not run: the device hung before", 0});
    return checks.size();
  }

  /// Seconds without a call that begins or ends, after which a child is given up. A submission that does not end is
  /// found by the check itself before.
  [[nodiscard]] double patience() const { return settings_.timeout + 5; }

  /// Reads what the child says until it ends; false: it does nothing any more.
  bool listen(std::span<const check> checks, int pipe, const trace& t, child_state& state) {
    std::string text;
    std::uint64_t beats = t.beats;
    clock::time_point last = clock::now();
    for (;;) {
      pollfd waiting = {pipe, POLLIN, 0};
      const int ready = ::poll(&waiting, 1, 200);
      if (ready < 0 && errno != EINTR) cli::fail(errc::io, "poll", std::strerror(errno));
      if (const std::uint64_t now = t.beats; now != beats || ready > 0) {
        beats = now;
        last = clock::now();
      }
      // Only a call of the device's can hang: the kit's own references may take their time.
      if (ready <= 0 && t.call.load() != nullptr &&
          std::chrono::duration<double>(clock::now() - last).count() > patience())
        return false;
      if (ready <= 0) continue;
      char piece[4096];
      const ssize_t n = ::read(pipe, piece, sizeof piece);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return true;
      text.append(piece, static_cast<std::size_t>(n));
      for (std::size_t end = 0; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1))
        take(checks, json::parse(text.substr(0, end)), state);
    }
  }

  void take(std::span<const check> checks, const json& message, child_state& state) {
    if (message.contains("cannot_open")) state.cannot_open = message["cannot_open"];
    if (message.contains("closed")) state.closed = true;
    if (message.contains("begin")) state.current = message["begin"];
    if (!message.contains("end")) return;
    state.hung = message.contains("hung");
    const std::string result = message["outcome"];
    state.failed = result == "failed";
    out.facts.update(message["facts"]);
    tell({&checks[state.current],
          result == "passed"   ? outcome::passed
          : result == "failed" ? outcome::failed
                               : outcome::skipped,
          message["message"], message["seconds"]});
  }

  settings settings_;
  const std::function<void(const verdict&)>& heard_;
};

}  // namespace

const char* to_string(outcome o) noexcept {
  return o == outcome::passed ? "passed" : o == outcome::failed ? "failed" : "skipped";
}

run_result run_isolated(const settings& s, std::span<const check> checks,
                        const std::function<void(const verdict&)>& heard) {
  runner r(s, heard);
  for (std::size_t first = 0; first < checks.size();) {
    std::size_t last = first + 1;
    while (last < checks.size() && std::string_view(checks[last].group) == checks[first].group) ++last;
    r.run(checks.subspan(first, last - first));
    first = last;
    if (!r.out.cannot_open.empty()) break;
  }
  return std::move(r.out);
}

}  // namespace flywheel::kit
