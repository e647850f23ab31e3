// Options that several subcommands share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/device_args.hpp"
#include "cli/terminal.hpp"
#include "flywheel/evaluate/compare.hpp"
#include "flywheel/model/adapter.hpp"
#include "flywheel/model/model.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace flywheel::cli {

/// What --activations and --kv-type take.
extern const char* const activation_help;
extern const std::vector<std::string> activation_names;
extern const std::vector<std::string> kv_type_names;

/// MODEL and how to load it. Without MODEL: the one that is part of the command.
struct model_args {
  std::string path;
  unsigned threads = 0;
  std::string isa;
  std::string activations = "auto";
  bool verbose = false;
  device_args devices;

  /// Declares MODEL (required unless there is a default) and the options.
  void declare(CLI::App& app, bool model_required = true);
  /// The options alone.
  void declare_options(CLI::App& app);
  [[nodiscard]] flywheel::context make_context() const;
  /// Opens the model with a progress bar, and the devices that compute it before; Ctrl-C cancels. Whoever is done with
  /// the model calls used.finish(). Throws.
  [[nodiscard]] model open(const interrupt& stop, used_devices& used) const;
};

/// --ctx and --kv-type.
struct session_args {
  std::int32_t ctx = 0;
  std::string kv_type = "f16";

  void declare(CLI::App& app, bool with_ctx = true);
  [[nodiscard]] session_options options() const;
};

/// "PATH[:SCALE]": what is behind the last colon is a scale, unless there is a file of the whole name. Throws, naming
/// --adapter.
[[nodiscard]] std::pair<std::string, float> split_scale(const std::string& text);

/// --adapter FILE_OR_FOLDER[:SCALE], repeatable.
struct adapter_args {
  std::vector<std::string> given;

  void declare(CLI::App& app);
  /// Opens them for a model. Throws, naming the option, where a scale is none.
  [[nodiscard]] std::vector<adapter_use> open(const model& base, const interrupt& stop) const;
};

/// The text of `file` as windows for the model (evaluate::cut_windows): llama-perplexity's, or all of it. Throws,
/// naming the file.
[[nodiscard]] std::vector<evaluate::window> cut_text(const model& m, std::string_view text, const std::string& file,
                                                     std::int32_t ctx, bool second_half);

/// --text, --file and --lines: what embed and rerank work on.
struct text_args {
  std::vector<std::string> texts;
  std::vector<std::string> files;
  std::string lines;

  /// Declares the options; `what` names one of the texts. Options that come together with others exclude these.
  std::vector<CLI::Option*> declare(CLI::App& app, const std::string& what);
  [[nodiscard]] bool given() const { return !texts.empty() || !files.empty() || !lines.empty(); }
  /// All of them in the order --text, --file, --lines; empty lines are left out. Throws.
  [[nodiscard]] std::vector<std::string> read() const;
};

/// Options of model::embed that embed and rerank share: --truncate, --ctx, --kv-type.
struct embed_args {
  session_args session;
  adapter_args adapters;
  bool truncate = false;

  void declare(CLI::App& app);
  /// Opens the adapters.
  [[nodiscard]] embed_options options(const model& loaded, const interrupt& stop) const;
};

/// How to choose tokens.
struct sampler_args {
  sampler_options values;
  bool greedy = false;
  std::vector<std::string> logit_bias;  ///< "ID=V"
  std::optional<std::uint64_t> seed;

  void declare(CLI::App& app);
  /// Throws usage_error for values out of range. Without --seed a random one is taken.
  [[nodiscard]] sampler_options options() const;
};

/// "1,2,3", "1 2 3", "[1, 2, 3]", or "@FILE" holding such a list ("@-": stdin). Throws usage_error naming `option` for
/// what is not a number; an unreadable file is a failure.
[[nodiscard]] std::vector<token_id> parse_ids(std::string_view list, const std::string& option);

/// The vocabulary of a file, without loading its weights. Throws.
[[nodiscard]] text::tokenizer open_tokenizer(const std::filesystem::path& path);

/// Throws when a session cannot hold that many tokens. `advice` says what to do.
void require_room(const session& sequence, std::size_t tokens, const std::string& advice);

/// "flywheel NAME", and of the command's own subcommand "flywheel NAME SUBCOMMAND".
[[nodiscard]] std::string full_name(const CLI::App& app);
/// "; see 'flywheel NAME --help'".
[[nodiscard]] std::string see_help(const CLI::App& app);

}  // namespace flywheel::cli
