// flywheel inspect: metadata, tensors, sizes, and what a model will take to run.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

struct inspect_args {
  std::string path;
  session_args session;
  bool full = false;
  bool no_tensors = false;
  bool json = false;
};

constexpr std::size_t shown_elements = 6;

template <class T>
inline constexpr bool is_array = false;
template <class T>
inline constexpr bool is_array<std::vector<T>> = true;

template <class T>
std::string type_name() {
  if constexpr (is_array<T>)
    return type_name<typename T::value_type>() + "[]";
  else if constexpr (std::is_same_v<T, std::string>)
    return "string";
  else if constexpr (std::is_same_v<T, bool>)
    return "bool";
  else if constexpr (std::is_floating_point_v<T>)
    return "f" + std::to_string(8 * sizeof(T));
  else
    return (std::is_signed_v<T> ? "i" : "u") + std::to_string(8 * sizeof(T));
}

/// JSON has no NaN and no infinity: these are written as strings.
template <class T>
json scalar_json(const T& value) {
  if constexpr (std::is_floating_point_v<T>)
    if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  return value;
}

template <class T>
std::string scalar_text(const T& value, bool quoted) {
  if constexpr (std::is_same_v<T, std::string>)
    return quoted ? "\"" + value + "\"" : value;
  else if constexpr (std::is_same_v<T, bool>)
    return value ? "true" : "false";
  else if constexpr (std::is_floating_point_v<T>) {
    char text[64];
    std::snprintf(text, sizeof text, "%.7g", static_cast<double>(value));
    return text;
  } else
    return std::to_string(value);
}

json value_json(const io::value& value, bool full) {
  return std::visit(
      [&](const auto& v) -> json {
        using T = std::decay_t<decltype(v)>;
        if constexpr (is_array<T>) {
          json list = json::array();
          const std::size_t count = full ? v.size() : std::min(v.size(), shown_elements);
          for (std::size_t i = 0; i < count; ++i) list.push_back(scalar_json<typename T::value_type>(v[i]));
          if (count == v.size()) return list;
          return {{"type", type_name<T>()}, {"length", v.size()}, {"first", std::move(list)}};
        } else {
          return scalar_json(v);
        }
      },
      value);
}

std::string value_text(const io::value& value, bool full) {
  return std::visit(
      [&](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (is_array<T>) {
          using E = typename T::value_type;
          const std::size_t count = full ? v.size() : std::min(v.size(), shown_elements);
          std::string text = "[";
          for (std::size_t i = 0; i < count; ++i)
            text += (i ? ", " : "") + shortened(printable(scalar_text<E>(v[i], true)), full ? 1000 : 24);
          if (count < v.size()) text += ", … " + grouped(static_cast<std::int64_t>(v.size())) + " in all";
          return text + "]";
        } else {
          return full ? scalar_text(v, false) : shortened(printable(scalar_text(v, false)), 100);
        }
      },
      value);
}

std::string value_type(const io::value& value) {
  return std::visit([](const auto& v) { return type_name<std::decay_t<decltype(v)>>(); }, value);
}

std::string name_of_type(dtype type) {
  return info(type) ? std::string(to_string(type)) : "type " + std::to_string(static_cast<std::uint32_t>(type));
}

struct type_total {
  std::int64_t tensors = 0;
  std::int64_t values = 0;
  std::uint64_t bytes = 0;
};

struct facts {
  io::archive file;
  std::map<std::string, type_total> types;
  type_total all;
  bool is_model = false;
  bool is_folder = false;  ///< A Hugging Face folder, shown as the GGUF model it is read as.
  std::optional<result<footprint>> predicted;
};

facts gather(const inspect_args& args) {
  facts f;
  f.file = open_model_archive(args.path).value();
  f.is_folder = std::filesystem::is_directory(args.path);
  for (const io::tensor_info& t : f.file.tensors())
    for (type_total* total : {&f.types[name_of_type(t.type)], &f.all}) {
      total->tensors += 1;
      total->values += t.dims.elements();
      total->bytes += t.bytes;
    }
  const auto architecture = f.file.metadata().string("general.architecture");
  f.is_model = f.file.container() == io::container::gguf && architecture &&
               f.file.metadata().contains(std::string(*architecture) + ".block_count") && !f.file.tensors().empty();
  if (f.is_model) f.predicted = model::footprint(f.file, args.session.options());
  return f;
}

std::string container_name(const facts& f) {
  if (f.is_folder) return "Hugging Face folder";
  const io::archive& file = f.file;
  return file.container() == io::container::gguf ? "GGUF version " + std::to_string(file.version()) : "safetensors";
}

json to_json(const facts& f, const inspect_args& args) {
  json result = {{"file", args.path},
                 {"container", f.is_folder                                 ? "hugging_face"
                               : f.file.container() == io::container::gguf ? "gguf"
                                                                           : "safetensors"},
                 {"version", f.file.version()},
                 {"parts", f.file.parts()},
                 {"file_bytes", f.file.file_bytes()},
                 {"tensor_count", f.all.tensors},
                 {"values", f.all.values},
                 {"tensor_bytes", f.all.bytes}};
  json metadata = json::object();
  for (const io::entry& e : f.file.metadata().entries()) metadata[e.key] = value_json(e.value, args.full);
  result["metadata"] = std::move(metadata);
  json types = json::array();
  for (const auto& [name, total] : f.types)
    types.push_back({{"type", name}, {"tensors", total.tensors}, {"values", total.values}, {"bytes", total.bytes}});
  result["types"] = std::move(types);
  if (!args.no_tensors) {
    json tensors = json::array();
    for (const io::tensor_info& t : f.file.tensors())
      tensors.push_back({{"name", t.name},
                         {"type", name_of_type(t.type)},
                         {"shape", std::vector<std::int64_t>(t.dims.dims().begin(), t.dims.dims().end())},
                         {"bytes", t.bytes},
                         {"part", t.part},
                         {"offset", t.offset}});
    result["tensors"] = std::move(tensors);
  }
  if (f.predicted && *f.predicted) {
    const footprint& p = **f.predicted;
    result["footprint"] = {{"weights", p.weights}, {"kv", p.kv}, {"arena", p.arena}, {"total", p.total()}};
  } else if (f.predicted) {
    result["problem"] = f.predicted->error().to_string();
  }
  return result;
}

/// What a session holds by default or by --ctx.
std::int64_t context_length(const facts& f, const inspect_args& args) {
  if (args.session.ctx > 0) return args.session.ctx;
  const auto architecture = f.file.metadata().string("general.architecture");
  const auto trained = f.file.metadata().integer(std::string(architecture.value_or("")) + ".context_length");
  return std::min<std::int64_t>(trained.value_or(4096), 4096);
}

void print_text(const facts& f, const inspect_args& args) {
  std::string parts = f.file.parts() > 1 ? " in " + std::to_string(f.file.parts()) + " files" : std::string();
  print_line(printable(args.path) + ": " + container_name(f) + ", " + human_bytes(f.file.file_bytes()) + parts + ", " +
             grouped(f.all.tensors) + " tensors, " + grouped(f.all.values) + " values");

  if (!f.file.metadata().entries().empty()) {
    table rows({{"key"}, {"type"}, {"value"}});
    for (const io::entry& e : f.file.metadata().entries())
      rows.row({shortened(printable(e.key), 60), value_type(e.value), value_text(e.value, args.full)});
    print("\n" + bold("Metadata") + "\n" + rows.text(2));
  }
  if (!args.no_tensors && f.all.tensors > 0) {
    table rows({{"tensor"}, {"type"}, {"shape"}, {"bytes", table::align::right}});
    for (const io::tensor_info& t : f.file.tensors())
      rows.row({shortened(printable(t.name), 80), name_of_type(t.type), t.dims.to_string(),
                grouped(static_cast<std::int64_t>(t.bytes))});
    print("\n" + bold("Tensors") + " (rows first, contiguous dimension last)\n" + rows.text(2));
  }
  if (f.all.tensors > 0) {
    table rows({{"type"},
                {"tensors", table::align::right},
                {"values", table::align::right},
                {"size", table::align::right},
                {"bits/value", table::align::right}});
    const auto add = [&](const std::string& name, const type_total& total) {
      const double bits =
          total.values > 0 ? 8 * static_cast<double>(total.bytes) / static_cast<double>(total.values) : 0;
      rows.row({name, grouped(total.tensors), grouped(total.values), human_bytes(total.bytes), decimal(bits, 2)});
    };
    for (const auto& [name, total] : f.types) add(name, total);
    if (f.types.size() > 1) add("all", f.all);
    print("\n" + bold("Sizes") + "\n" + rows.text(2));
  }
  if (f.predicted && *f.predicted) {
    const footprint& p = **f.predicted;
    table rows({{"memory to run it"}, {"size", table::align::right}});
    rows.row({"weights", human_bytes(p.weights)});
    rows.row({"KV cache of one session (" + args.session.kv_type + ", " + grouped(context_length(f, args)) + " tokens)",
              human_bytes(p.kv)});
    rows.row({"intermediate results of one session", human_bytes(p.arena)});
    rows.row({"total", human_bytes(p.total())});
    print("\n" + bold("Footprint") + "\n" + rows.text(2));
  } else if (f.predicted) {
    print_line("\nThis version cannot run it: " + printable(f.predicted->error().to_string()));
  }
}

}  // namespace

action inspect_command(CLI::App& app) {
  auto args = std::make_shared<inspect_args>();
  app.add_option("FILE", args->path, "GGUF or safetensors file, the index of a sharded one, or a Hugging Face folder")
      ->required();
  app.add_flag("--full", args->full, "Do not abbreviate long values");
  app.add_flag("--no-tensors", args->no_tensors, "Leave the list of tensors out");
  args->session.declare(app);
  app.add_flag("--json", args->json, "Print one JSON object");
  app.footer(
      "Examples:\n"
      "  flywheel inspect model.gguf\n"
      "  flywheel inspect model.gguf --ctx 8192 --no-tensors\n"
      "  flywheel inspect model.safetensors --json");
  return [args] {
    const facts f = gather(*args);
    if (args->json)
      print_line(dump(to_json(f, *args)));
    else
      print_text(f, *args);
    return success;
  };
}

}  // namespace flywheel::cli
