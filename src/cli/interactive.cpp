// The interactive mode of flywheel run: every line is appended to the text, and the model goes on from there.
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <string>

#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "cli/run.hpp"
#include "cli/terminal.hpp"

namespace flywheel::cli {
namespace {

enum class line_state { line, interrupted, end };

/// One line from stdin without its line feed. Unlike std::getline this tells Ctrl-C from the end of the input.
line_state read_line(std::string& line) {
  line.clear();
  const interruptible_reading reading;
  while (true) {
    errno = 0;
    const int c = std::fgetc(stdin);
    if (c == '\n') return line_state::line;
    if (c != EOF) {
      line += static_cast<char>(c);
      continue;
    }
    const bool was_interrupted = std::ferror(stdin) != 0 && errno == EINTR;
    std::clearerr(stdin);
    if (was_interrupted) return line_state::interrupted;
    return line.empty() ? line_state::end : line_state::line;
  }
}

constexpr std::string_view help =
    "Each line you enter is appended to the text, and the model continues it.\n"
    "  /clear   forget the text\n"
    "  /help    this page\n"
    "  /quit    leave (or Ctrl-D)\n"
    "Ctrl-C stops the model. A line that starts with // is text that starts with /.\n";

}  // namespace

int interactive_session(const run_args& args, const model& loaded, const session_options& options, interrupt& stop) {
  if (!loaded.tokenizer())
    fail(errc::unsupported, args.model.path, "the file carries no vocabulary; give a prompt as token ids with --ids");
  const bool terminal = is_terminal(stdin) && is_terminal(stdout);
  session sequence = loaded.new_session(options).value();
  if (terminal) {
    const std::string name = loaded.info().name.empty() ? loaded.info().architecture : loaded.info().name;
    print_line(printable(name) + ", context of " + grouped(sequence.n_ctx()) +
               " tokens. Enter the start of a text; /help for help, /quit to leave.");
  }

  std::string line;
  while (true) {
    if (terminal) print("> ");
    finish_stdout();
    const line_state state = terminal && !stop.wait_for_line() ? line_state::interrupted : read_line(line);
    if (state == line_state::end) break;
    if (state == line_state::interrupted) {
      stop.reset();
      print_line("\n(/quit or Ctrl-D leaves)");
      continue;
    }
    if (line == "/quit" || line == "/exit") break;
    if (line == "/help") {
      print(help);
      continue;
    }
    if (line == "/clear") {
      sequence.clear();
      continue;
    }
    if (line.starts_with("//")) {
      line.erase(0, 1);
    } else if (line.starts_with("/")) {
      print_line(shortened(printable(line), 40) + ": no such command; /help lists them");
      continue;
    }

    const bool first = sequence.tokens().empty();
    const auto ids =
        loaded.tokenizer().encode(line, {.add_special = first, .parse_special = args.parse_special}).value();
    if (ids.empty() && first) continue;
    text_stream out;
    result<void> read;
    if (!ids.empty()) {
      progress_bar bar("reading");
      read = sequence.prefill(ids, {bar.callback(), stop.token()});
    }
    std::optional<result<generation>> made;
    if (read) {
      generate_options how = make_generate_options(args);
      how.control.stop = stop.token();
      made = sequence.generate(how, [&](const generation_step& step) {
        out.write(step.text);
        return true;
      });
    }
    out.finish();
    const bool cancelled = stop.requested();
    stop.reset();
    const error* failed = !read ? &read.error() : made && !*made ? &made->error() : nullptr;
    const bool full = (failed != nullptr && failed->code == errc::context_full) ||
                      (made && *made && (*made)->reason == stop_reason::context_full);
    if (full)
      print_line("(the context is full: /clear forgets it; --slide goes on by itself, --ctx makes it larger)");
    else if (cancelled)
      print_line("(stopped)");
    else if (failed != nullptr)
      throw bad_result(*failed);
  }
  if (terminal) print("\n");
  return success;
}

}  // namespace flywheel::cli
