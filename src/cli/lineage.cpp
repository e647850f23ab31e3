// flywheel lineage: which models a file was made from.
#include "flywheel/adapt/lineage.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "cli/lineage_drawing.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "cli/terminal.hpp"

namespace flywheel::cli {
namespace {

struct lineage_args {
  std::string file, svg;
  bool verify = false, json = false;
};

const char* word_of(adapt::digest_state state) {
  switch (state) {
    case adapt::digest_state::right:
      return "right";
    case adapt::digest_state::wrong:
      return "wrong";
    case adapt::digest_state::missing_file:
      return "missing";
    case adapt::digest_state::unknown:
      break;
  }
  return "unknown";
}

/// Nodes in the order of verify_lineage.
class lineage_printer {
 public:
  explicit lineage_printer(std::span<const adapt::digest_state> states) : states_(states) {}

  void tree(const adapt::lineage& node, const std::string& first, const std::string& rest) {
    print_line(first + line(node));
    for (std::size_t i = 0; i < node.parents.size(); ++i) {
      const bool last = i + 1 == node.parents.size();
      tree(node.parents[i], rest + (last ? "\xE2\x94\x94\xE2\x94\x80 " : "\xE2\x94\x9C\xE2\x94\x80 "),
           rest + (last ? "   " : "\xE2\x94\x82  "));
    }
  }

  json object(const adapt::lineage& node) {
    json made = {{"name", node.name},       {"path", node.path},     {"role", node.role}, {"sha256", node.sha256},
                 {"license", node.license}, {"method", node.method}, {"seed", node.seed}, {"version", node.version}};
    json parameters = json::parse(node.parameters, nullptr, false);
    made["parameters"] = parameters.is_discarded() ? json(node.parameters) : std::move(parameters);
    if (!states_.empty()) made["digest"] = word_of(states_[next_++]);
    made["parents"] = json::array();
    for (const adapt::lineage& parent : node.parents) made["parents"].push_back(object(parent));
    return made;
  }

 private:
  std::string line(const adapt::lineage& node) {
    std::string text = bold(printable(node.name));
    const auto add = [&](const std::string& part) {
      if (!part.empty()) text += "  " + printable(part);
    };
    if (!is_root_) add(node.role);
    if (!node.method.empty())
      add("by " + node.method + (node.seed != 0 ? ", seed " + std::to_string(node.seed) : "") +
          (node.version.empty() ? "" : ", flywheel " + node.version));
    if (!node.license.empty()) add("(" + node.license + ")");
    if (!is_root_) {
      add(node.path);
      if (!node.sha256.empty()) add("sha256:" + node.sha256.substr(0, 12));
    }
    if (!states_.empty()) {
      const adapt::digest_state state = states_[next_++];
      if (state == adapt::digest_state::wrong)
        text += "  " + red("another file");
      else if (!is_root_)
        add(state == adapt::digest_state::right          ? "verified"
            : state == adapt::digest_state::missing_file ? "not here"
                                                         : "no digest");
    }
    is_root_ = false;
    return text;
  }

  std::span<const adapt::digest_state> states_;
  std::size_t next_ = 0;
  bool is_root_ = true;
};

int show_lineage(const lineage_args& args) {
  if (!args.svg.empty()) refuse_overwrite(args.svg, "--svg", {args.file, args.file + ".lineage.json"});
  const interrupt stop;
  const adapt::lineage of = adapt::read_lineage(args.file).value();
  std::vector<adapt::digest_state> states;
  if (args.verify) {
    progress_bar bar("verifying");
    states = adapt::verify_lineage(of, args.file, {bar.callback(), stop.token()}).value();
  }
  if (!args.svg.empty()) {
    output_file out(args.svg, "--svg");
    const std::string drawing = lineage_svg(of, states);
    out.write(std::as_bytes(std::span(drawing)));
    out.finish();
  }
  lineage_printer printer(states);
  if (args.json)
    print_line(dump(printer.object(of)));
  else
    printer.tree(of, "", "");
  // A parent that is another file is a failure of verification; one that is not here is none.
  return std::find(states.begin(), states.end(), adapt::digest_state::wrong) == states.end() ? success : failure;
}

}  // namespace

action lineage_command(CLI::App& app) {
  auto args = std::make_shared<lineage_args>();
  app.add_option("FILE", args->file, "A model or adapter: a GGUF or safetensors file, or a folder")->required();
  app.add_flag("--verify", args->verify,
               "Compare the digests with the files that are here (at their path, or beside FILE); exit code 1 when one "
               "is another file");
  app.add_option("--svg", args->svg, "Draw the tree into this file");
  app.add_flag("--json", args->json, "Write the record on stdout as JSON");
  app.footer(
      "Examples:\n"
      "  flywheel lineage merged.gguf --verify\n"
      "  flywheel lineage merged.gguf --svg family.svg");
  return [args] { return show_lineage(*args); };
}

}  // namespace flywheel::cli
