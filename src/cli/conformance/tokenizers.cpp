// tokenizers/: ids and detokenized text of every case, published lists included.
#include <algorithm>

#include "cli/args.hpp"
#include "cli/conformance/cases.hpp"

namespace flywheel::cli {
namespace {

void run_case(const text::tokenizer& vocabulary, const json& c, const std::string& name, tally& results) {
  const std::string text =
      c.contains("text") ? c.at("text").get<std::string>() : decode_base64(c.at("bytes_b64").get<std::string>(), name);
  const auto ids = vocabulary.encode(text, {c.value("add_special", false), c.value("parse_special", false)});
  if (!ids) return results.refused(name, ids.error());
  const bool equal = *ids == c.at("ids").get<std::vector<token_id>>();
  if (!equal && c.value("invalid_utf8", false)) return results.skip(name, "invalid UTF-8: another policy");
  results.check(name, equal, dump(text) + " gave " + dump(*ids) + ", expected " + dump(c.at("ids")));
  if (!c.contains("detokenized")) return;
  const auto back = vocabulary.decode(c.at("ids").get<std::vector<token_id>>());
  if (!back) return results.refused(name + ".text", back.error());
  // Compared as JSON renders it: U+FFFD where a byte is not UTF-8, as in the reference results.
  results.check(name + ".text", dump(*back) == dump(c.at("detokenized")),
                dump(*back) + ", expected " + dump(c.at("detokenized")));
}

}  // namespace

void run_tokenizers(const conformance_run& run, tally& results) {
  std::vector<std::filesystem::path> files;
  for (const auto& item : std::filesystem::directory_iterator(run.folder))
    if (item.path().extension() == ".json") files.push_back(item.path());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    const json all = read_json(file);
    if (!all.is_object() || !all.contains("vocabulary")) continue;
    const std::string name = file.stem().string();
    try {
      const text::tokenizer vocabulary = open_tokenizer(run.folder / all.at("vocabulary").get<std::string>());
      std::size_t number = 0;
      for (const json& c : all.at("cases")) {
        run.check_stopped();
        run_case(vocabulary, c, name + "#" + std::to_string(++number), results);
      }
      for (const json& c : all.value("published", json::array())) {
        run.check_stopped();
        if (c.value("confirmed_by_engines", false))
          run_case(vocabulary, c, name + "#" + std::to_string(++number), results);
      }
    } catch (const bad_result& e) {
      if (e.why().code == errc::cancelled) throw;
      results.refused(name, e.why());
    }
  }
}

}  // namespace flywheel::cli
