// The parts of `flywheel run`: settings, one generation, and the interactive mode.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/args.hpp"
#include "cli/terminal.hpp"
#include "flywheel/model/session.hpp"

namespace flywheel::cli {

struct run_args {
  model_args model;
  session_args session;
  adapter_args adapters;
  sampler_args sampler;
  std::optional<std::string> prompt;
  std::optional<std::string> ids;
  std::string file;
  std::int32_t max_tokens = 256;
  bool ignore_eos = false;
  bool parse_special = false;
  std::vector<std::string> stop_texts;
  std::optional<std::int32_t> logprobs;
  bool slide = false;
  std::int32_t keep = 0;
  bool json = false;
  bool interactive = false;
};

/// Generation options without control.
[[nodiscard]] generate_options make_generate_options(const run_args& args);

/// Writes generated text as it comes; on a terminal nothing in it can move the cursor.
class text_stream {
 public:
  text_stream();
  void write(std::string_view text);
  /// Ends the line if the text did not.
  void finish();

 private:
  bool terminal_;
  bool at_line_start_ = true;
};

/// Reads lines and continues the text after each until /quit or the end of the input. Returns the exit code.
int interactive_session(const run_args& args, const model& loaded, const session_options& options, interrupt& stop);
/// What the options say, with the adapters opened.
[[nodiscard]] session_options make_session_options(const run_args& args, const model& loaded, const interrupt& stop);

}  // namespace flywheel::cli
