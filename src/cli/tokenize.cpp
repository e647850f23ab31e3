// flywheel tokenize: text to ids.
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"

namespace flywheel::cli {
namespace {

struct tokenize_args {
  std::string path;
  std::optional<std::string> text;
  std::string file;
  std::string jsonl;
  bool add_special = false;
  bool parse_special = false;
  bool json = false;
};

/// One line {text or bytes_b64, add_special, parse_special} to one line {ids, text}.
std::string tokenize_line(const text::tokenizer& vocabulary, std::string_view line, const std::string& where,
                          const tokenize_args& args) {
  const json request = json::parse(line, nullptr, false);
  if (!request.is_object()) fail(errc::malformed, where, "is not a JSON object");
  const auto flag = [&](const char* key, bool otherwise) {
    const auto it = request.find(key);
    if (it == request.end()) return otherwise;
    if (!it->is_boolean()) fail(errc::malformed, where, std::string(key) + " must be true or false");
    return it->get<bool>();
  };
  const char* key = request.contains("text") ? "text" : "bytes_b64";
  const auto found = request.find(key);
  if (found == request.end() || !found->is_string())
    fail(errc::malformed, where, "needs a string \"text\" or \"bytes_b64\"");
  const std::string text =
      key == std::string_view("text") ? found->get<std::string>() : decode_base64(found->get<std::string>(), where);
  const text::encode_options options{flag("add_special", args.add_special), flag("parse_special", args.parse_special)};
  const std::vector<token_id> ids = vocabulary.encode(text, options).value();
  return dump({{"ids", ids}, {"text", vocabulary.decode(ids).value()}});
}

void tokenize_lines(const text::tokenizer& vocabulary, const tokenize_args& args) {
  const std::string all = read_file(args.jsonl);
  std::size_t number = 0;
  for (std::string_view rest = all; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    print_line(tokenize_line(vocabulary, line,
                             (args.jsonl == "-" ? "stdin" : args.jsonl) + " line " + std::to_string(number), args));
  }
}

}  // namespace

action tokenize_command(CLI::App& app) {
  auto args = std::make_shared<tokenize_args>();
  app.add_option("MODEL", args->path, "File with the vocabulary (GGUF)")->required();
  CLI::Option* text = app.add_option("--text", args->text, "Text to encode");
  CLI::Option* file = app.add_option("--file", args->file, "Encode a file as a whole; -: stdin");
  CLI::Option* jsonl = app.add_option(
      "--jsonl", args->jsonl, "Encode every line's \"text\" or \"bytes_b64\"; answers {ids, text} line by line");
  text->excludes(file)->excludes(jsonl);
  file->excludes(jsonl);
  app.add_flag("--add-special", args->add_special, "Add the start and end tokens that the vocabulary asks for");
  app.add_flag("--parse-special", args->parse_special, "Special tokens in the text, such as </s>, are those tokens");
  app.add_flag("--json", args->json, "Print {\"ids\": [...]}");
  app.footer(
      "Examples:\n"
      "  flywheel tokenize model.gguf --text \"Hello world\"\n"
      "  flywheel tokenize model.gguf --file notes.txt --add-special --json\n"
      "  flywheel tokenize model.gguf --jsonl requests.jsonl");
  return [args, file, jsonl] {
    if (!args->text && !*file && !*jsonl)
      throw usage_error("tokenize", "nothing to encode: give --text S, --file F or --jsonl F");
    const text::tokenizer vocabulary = open_tokenizer(args->path);
    if (*jsonl) {
      tokenize_lines(vocabulary, *args);
      return success;
    }
    const std::string text = args->text ? *args->text : read_file(args->file);
    const auto ids = vocabulary.encode(text, {args->add_special, args->parse_special}).value();
    if (args->json) {
      print_line(dump({{"ids", ids}}));
      return success;
    }
    table rows({{"id", table::align::right}, {"piece"}});
    for (const token_id id : ids) rows.row({std::to_string(id), std::string(vocabulary.piece(id))});
    print(rows.text());
    print_line(grouped(static_cast<std::int64_t>(ids.size())) + " tokens, " +
               grouped(static_cast<std::int64_t>(text.size())) + " bytes");
    return success;
  };
}

}  // namespace flywheel::cli
