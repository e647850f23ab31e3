// flywheel logits: rows of logits as raw little-endian 32-bit floats.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

struct logits_args {
  model_args model;
  session_args session;
  adapter_args adapters;
  std::string ids;
  std::uint32_t every = 0;
  std::string out;
  bool json = true;
};

int write_logits(const logits_args& args) {
  const std::vector<token_id> ids = parse_ids(args.ids, "--ids");
  if (ids.empty()) throw usage_error("--ids", "holds no ids; write ids as 1,2,3");
  interrupt stop;
  used_devices devices;
  const model loaded = args.model.open(stop, devices);
  session_options options = args.session.options();
  if (options.n_ctx == 0) {  // never too small for what was asked
    const std::int32_t usual = std::min(loaded.info().n_ctx_train, 4096);
    if (static_cast<std::int64_t>(ids.size()) > usual) options.n_ctx = static_cast<std::int32_t>(ids.size());
  }
  options.adapters = args.adapters.open(loaded, stop);
  session sequence = loaded.new_session(options).value();
  require_room(sequence, ids.size(), "choose a larger --ctx or none");
  output_file out(args.out);
  std::vector<std::size_t> positions;
  progress_bar bar("computing");
  const auto row = [&](std::size_t position, std::span<const float> logits) -> result<void> {
    positions.push_back(position);
    try {
      out.write(logits);
    } catch (const bad_result& e) {
      return e.why();
    }
    return {};
  };
  sequence.prefill_rows(ids, args.every, row, {bar.callback(), stop.token()}).value();
  bar.clear();
  out.finish();
  const std::int32_t n_vocab = loaded.info().n_vocab;
  print_line(dump({{"file", args.out},
                   {"dtype", "f32"},
                   {"byte_order", "little"},
                   {"n_rows", positions.size()},
                   {"n_vocab", n_vocab},
                   {"positions", positions},
                   {"n_tokens", ids.size()},
                   {"kv_type", args.session.kv_type}}));
  devices.finish();
  return success;
}

}  // namespace

action logits_command(CLI::App& app) {
  auto args = std::make_shared<logits_args>();
  args->model.declare(app);
  app.add_option("--ids", args->ids, "Token ids, taken as they are: 1,2,3 (or @FILE, @-: stdin)")->required();
  app.add_option("--every", args->every, "Rows of positions 0, K, 2K, ... and the last; default: the last alone")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--out", args->out, "File to write: f32 rows [n_rows, n_vocab]")->required();
  args->session.declare(app);
  args->adapters.declare(app);
  app.add_flag("--json", args->json, "The description on stdout is always JSON");
  app.footer(
      "Examples:\n"
      "  flywheel logits model.gguf --ids 1,415,332 --out last.f32\n"
      "  flywheel logits model.gguf --ids @ids.txt --every 1 --kv-type f32 --out all.f32");
  return [args] { return write_logits(*args); };
}

}  // namespace flywheel::cli
