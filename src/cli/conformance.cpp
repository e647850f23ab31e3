// flywheel conformance: this build against a folder of reference results.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/conformance/cases.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"

namespace flywheel::cli {
namespace {

struct section {
  const char* name;
  const char* folder;
  void (*run)(const conformance_run&, tally&);
};
constexpr section sections[] = {
    {"formats", "formats", run_formats},
    {"tokenizers", "tokenizers", run_tokenizers},
    {"architectures", "architectures", run_architectures},
    {"quantized", "architectures/quantized", run_quantized},
    {"chat", "chat", run_chat},
    {"adapters", "adapters", run_adapters},
    {"corrupt", "corrupt", run_corrupt},
};

struct conformance_args {
  model_args common;  // only the context's options are used
  std::string folder;
  std::vector<std::string> wanted;
  bool json = false;
};

struct counts {
  std::int64_t passed = 0, failed = 0, skipped = 0;
  std::int64_t& of(outcome how) { return how == outcome::passed ? passed : how == outcome::failed ? failed : skipped; }
};

int run_all(const conformance_args& args) {
  const std::filesystem::path root(args.folder);
  if (!std::filesystem::is_directory(root))
    fail(errc::not_found, args.folder, "is not a folder; name a conformance folder");
  interrupt stop;
  const context ctx = args.common.make_context();
  std::vector<case_result> noted;
  std::vector<std::pair<std::string, counts>> per_section;
  counts all;
  progress_bar bar("conformance");
  for (const section& s : sections) {
    const bool chosen = args.wanted.empty() ||
                        std::find(args.wanted.begin(), args.wanted.end(), s.name) != args.wanted.end() ||
                        (s.run == run_quantized &&
                         std::find(args.wanted.begin(), args.wanted.end(), "architectures") != args.wanted.end());
    if (!chosen || !std::filesystem::is_directory(root / s.folder)) continue;
    counts& here = per_section.emplace_back(s.name, counts{}).second;
    const std::string here_folder = (root / s.folder).string() + "/";  // said once is enough
    tally results(s.name, [&](const case_result& c) {
      if (stop.requested()) return;  // what Ctrl-C cuts short has not failed
      ++here.of(c.how);
      ++all.of(c.how);
      bar.update(static_cast<std::uint64_t>(all.passed + all.failed + all.skipped), 0, c.section + "/" + c.name);
      if (c.how == outcome::passed) return;
      noted.push_back(c);
      if (std::string& why = noted.back().why; why.starts_with(here_folder)) why.erase(0, here_folder.size());
      if (args.json) return;
      bar.clear();
      print_line((c.how == outcome::failed ? red("FAIL ") : "skip ") +
                 printable(c.section + "/" + c.name + ": " + shortened(printable(noted.back().why), 400)));
      finish_stdout();
    });
    s.run({root / s.folder, ctx, stop.token()}, results);
  }
  bar.clear();
  if (per_section.empty())
    fail(errc::not_found, args.folder,
         "holds none of the sections formats, tokenizers, architectures, chat, adapters, corrupt");

  if (args.json) {
    json result = {{"passed", all.passed}, {"failed", all.failed}, {"skipped", all.skipped}};
    for (const auto& [name, c] : per_section)
      result["sections"][name] = {{"passed", c.passed}, {"failed", c.failed}, {"skipped", c.skipped}};
    for (const char* kind : {"failures", "skips"}) {
      json list = json::array();
      for (const case_result& c : noted)
        if ((c.how == outcome::failed) == (kind == std::string_view("failures")))
          list.push_back({{"case", c.section + "/" + c.name}, {"why", c.why}});
      result[kind] = std::move(list);
    }
    print_line(dump(result));
  } else {
    table rows({{"section"},
                {"passed", table::align::right},
                {"failed", table::align::right},
                {"skipped", table::align::right}});
    for (const auto& [name, c] : per_section)
      rows.row({name, std::to_string(c.passed), std::to_string(c.failed), std::to_string(c.skipped)});
    print(rows.text());
    print_line(std::to_string(all.passed) + " passed, " + std::to_string(all.failed) + " failed, " +
               std::to_string(all.skipped) + " skipped");
  }
  return all.failed > 0 || all.passed == 0 ? failure : success;
}

}  // namespace

action conformance_command(CLI::App& app) {
  auto args = std::make_shared<conformance_args>();
  std::vector<std::string> names;
  for (const section& s : sections) names.emplace_back(s.name);
  app.add_option("DIR", args->folder, "Folder with formats/, tokenizers/, architectures/, chat/, adapters/, corrupt/")
      ->required();
  app.add_option("SECTION", args->wanted, "Only these sections; default: all that the folder has")
      ->check(CLI::IsMember(names));
  app.add_option("-t,--threads", args->common.threads, "Threads to use; default: one per physical core")
      ->check(CLI::Range(1, 4096));
  app.add_option("--isa", args->common.isa,
                 "Instruction set to use, one of those that 'flywheel info' lists; default: the best");
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Prints what failed and what this version does not support, a table, and 'N passed, N failed, N skipped'.\n"
      "Exit code 1 if anything failed.\n"
      "\nExamples:\n"
      "  flywheel conformance shared/conformance\n"
      "  flywheel conformance shared/conformance formats corrupt --isa generic");
  return [args] { return run_all(*args); };
}

}  // namespace flywheel::cli
