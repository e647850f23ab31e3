#include "cli/help.hpp"

#include <CLI/CLI.hpp>
#include <string>

#include "cli/args.hpp"

namespace flywheel::cli {
namespace {

class formatter : public CLI::Formatter {
 public:
  formatter() { column_width(30); }

  std::string make_usage(const CLI::App* app, std::string) const override {
    std::string line = "Usage: " + full_name(*app);
    if (!app->get_subcommands([](const CLI::App*) { return true; }).empty()) return line + " COMMAND [options]\n";
    for (const CLI::Option* option : app->get_options([](const CLI::Option* o) { return o->get_positional(); })) {
      std::string name = option->get_name(true);
      if (option->get_expected_max() > 1) name += "...";
      line += option->get_required() ? " " + name : " [" + name + "]";
    }
    return line + " [options]\n";
  }

  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_positional() || option->get_type_size() == 0) return {};
    std::string type = option->get_type_name();
    type.erase(std::min(type.find(':'), type.size()));  // what follows describes validators
    std::string text = type == "UINT" || type == "INT" ? " N" : type == "FLOAT" ? " X" : " " + type;
    if (!option->get_default_str().empty()) text += " = " + option->get_default_str();
    return text;
  }
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<formatter>(); }

}  // namespace flywheel::cli
