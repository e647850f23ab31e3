#include "cli/bench/hardware.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iterator>
#include <optional>
#include <span>

#include "cli/bench/model.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "cli/synth.hpp"

namespace flywheel::cli {
namespace {

using measure::hardware_report;
using measure::product_figures;
using measure::product_shape;

constexpr const char* model_name = "tinyllama-1.1b";
constexpr product_shape default_shapes[] = {{5632, 2048}, {4096, 4096}};  ///< The first is a matrix of that model.
constexpr dtype quick_formats[] = {dtype::q4_0, dtype::q8_0, dtype::q4_k, dtype::q6_k, dtype::q8_channel, dtype::f32};

std::string lower(std::string_view name) {
  std::string text(name);
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

std::string type_of(dtype type) { return lower(to_string(type)); }

std::vector<dtype> chosen_formats(const hardware_bench_args& args) {
  const std::vector<dtype> known = measure::product_formats();
  if (args.only.empty()) {
    if (args.quick) return {std::begin(quick_formats), std::end(quick_formats)};
    std::vector<dtype> usual;
    std::copy_if(known.begin(), known.end(), std::back_inserter(usual), [](dtype t) { return t != dtype::f64; });
    return usual;
  }
  std::vector<dtype> chosen;
  for (const std::string& name : args.only) {
    const dtype_info* type = find_dtype(name);
    if (type == nullptr || std::find(known.begin(), known.end(), type->type) == known.end()) {
      std::string all;
      for (const dtype k : known) all += (all.empty() ? "" : ", ") + type_of(k);
      throw usage_error("--only", "no products with weights of type '" + name + "'; known: " + all);
    }
    chosen.push_back(type->type);
  }
  return chosen;
}

product_shape parse_shape(const std::string& text) {
  product_shape shape;
  const char* const end = text.data() + text.size();
  const auto [x, bad_n] = std::from_chars(text.data(), end, shape.n);
  const bool ok = bad_n == std::errc() && x != end && *x == 'x';
  const auto [rest, bad_k] = std::from_chars(ok ? x + 1 : end, end, shape.k);
  if (!ok || bad_k != std::errc() || rest != end || shape.n < 1 || shape.k < 256 || shape.k % 256 != 0 ||
      shape.n > 1 << 20 || shape.k > 1 << 16)
    throw usage_error("--shape", "'" + text + "' must look like 4096x2048: outputs x inputs, inputs a multiple of 256");
  return shape;
}

/// From the first shape's products: 2 operations per layer weight of a prefill, its attention at the rate of f32
/// products; bytes of all weights but the embedding for a decoded token, and the barriers of its layers.
model_speeds predict(const hardware_report& report) {
  const model_shape& s = *find_model_shape(model_name);
  const double q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  const double layer = 2.0 * s.hidden * q + 2.0 * s.hidden * kv + 3.0 * s.hidden * s.ffn;
  const double layers = layer * s.layers, head = static_cast<double>(s.vocab) * s.hidden;
  const product_shape& shape = report.products.front().shape;
  const auto rate = [&](dtype type, bool prefill) {
    double best = 0;
    for (const product_figures& p : report.products)
      if (p.weight == type && p.shape.n == shape.n && p.shape.k == shape.k && (prefill ? p.m >= 32 : p.m == 1))
        best = std::max(best, (prefill ? p.operations : p.bytes) / p.seconds.min);
    return best;
  };
  const double f32 = rate(dtype::f32, true), attention_rate = f32 > 0 ? f32 : 0.5 * report.best().f32;
  constexpr double prompt = 512, generate = 128, barriers_per_layer = 6;
  model_speeds speeds;
  for (const measure::pack_figures& p : report.packs) {
    const dtype_info& type = *info(p.weight);
    const double bytes = (layers + head) * type.block_bytes / type.block_elements;
    const double attention = 4 * q * s.layers * prompt * prompt / 2 / attention_rate;
    const double products = 2 * layers * prompt / rate(p.weight, true);
    const double token = bytes / rate(p.weight, false) + barriers_per_layer * s.layers * report.barrier +
                         report.dispatch + 4 * q * s.layers * generate / 2 / attention_rate;
    speeds.predicted.push_back({p.weight, prompt / (products + attention), 1 / token});
  }
  return speeds;
}

speed run_model(dtype type, const hardware_bench_args& args, const interrupt& stop) {
  const temporary_file file(".gguf");
  write_synthetic(*find_model_shape(model_name), type, file.path(), 1, stop);
  model_args how;
  how.path = file.path();
  how.threads = args.threads;
  how.isa = args.isa;
  used_devices none;
  const model loaded = how.open(stop, none);
  model_workload work;
  work.repetitions = 1;  // the whole report is to take a minute
  const model_figures f = measure_model(loaded, cost_of(io::archive::open(std::filesystem::path(file.path())).value()),
                                        work, session_args{}, static_cast<std::size_t>(args.rotate_mib) << 20, stop);
  return {type, f.prefill_tps.median, f.decode_tps.median};
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

const char* roof_name(const product_figures& p) { return p.memory_bound() ? "read" : p.int8 ? "int8" : "f32"; }

json speed_json(const speed& s) { return {{"type", to_string(s.weight)}, {"pp512", s.prefill}, {"tg128", s.decode}}; }

json hardware_json(const hardware_report& r, const model_speeds& speeds) {
  json clusters = json::array(), scaling = json::array(), packs = json::array(), products = json::array();
  json distances = json::array(), predicted = json::array();
  for (const isa_status& c : r.isa.clusters)
    clusters.push_back({{"name", c.name}, {"built", c.built}, {"detected", c.detected}});
  for (const measure::scaling_figures& s : r.scaling)
    scaling.push_back({{"threads", s.threads},
                       {"int8_gops", s.best.int8 / 1e9},
                       {"f32_gflops", s.best.f32 / 1e9},
                       {"bf16_gflops", s.best.bf16 / 1e9},
                       {"read_gbs", s.best.read / 1e9},
                       {"read_gbs_median", s.median_read / 1e9},
                       {"prefill_gops", s.prefill / 1e9},
                       {"decode_gbs", s.decode / 1e9}});
  for (const measure::pack_figures& p : r.packs)
    packs.push_back({{"type", to_string(p.weight)}, {"gbs", p.bytes_per_second / 1e9}});
  for (const product_figures& p : r.products)
    products.push_back(
        {{"type", to_string(p.weight)},
         {"kernel", p.kernel},
         {"n", p.shape.n},
         {"k", p.shape.k},
         {"m", p.m},
         {"ms", {{"min", p.seconds.min * 1e3}, {"median", p.seconds.median * 1e3}, {"max", p.seconds.max * 1e3}}},
         {"gops", p.operations / p.seconds.min / 1e9},
         {"gbs", p.bytes / p.seconds.min / 1e9},
         {"roof", roof_name(p)},
         {"pct_roof", p.pct_roof()},
         {"pct_compute", p.pct_compute},
         {"pct_read", p.pct_read},
         {"max_error", p.max_error}});
  const measure::prefetch_figures* best = &r.prefetch.front();
  for (const measure::prefetch_figures& p : r.prefetch) {
    distances.push_back({{"bytes", p.distance}, {"gbs", p.bytes_per_second / 1e9}});
    if (p.bytes_per_second > best->bytes_per_second) best = &p;
  }
  for (const speed& s : speeds.predicted) predicted.push_back(speed_json(s));
  return {
      {"cpu", r.isa.cpu},
      {"architecture", r.isa.architecture},
      {"isa", r.isa.selected},
      {"clusters", std::move(clusters)},
      {"caches", {{"l1d", r.caches.l1d}, {"l2", r.caches.l2}, {"l3", r.caches.l3}}},
      {"memory_bytes", r.memory.total},
      {"huge_pages", {{"setting", r.huge_pages}, {"pct_of_weights", 100 * r.huge_part}}},
      {"load", r.load},
      {"threads", r.threads},
      {"rotated_bytes", r.bytes},
      {"clock_ghz", r.clock / 1e9},
      {"dispatch_us", r.dispatch * 1e6},
      {"barrier_us", r.barrier * 1e6},
      {"scaling", std::move(scaling)},
      {"pack", std::move(packs)},
      {"kernels", std::move(products)},
      {"prefetch",
       {{"type", to_string(r.prefetch_weight)}, {"best_bytes", best->distance}, {"distances", std::move(distances)}}},
      {"model",
       {{"shape", model_name},
        {"predicted", std::move(predicted)},
        {"measured", speeds.measured ? speed_json(*speeds.measured) : json()}}},
      {"recommended_threads", {{"prefill", r.prefill_threads}, {"decode", r.decode_threads}}}};
}

// ---- Page -----------------------------------------------------------------------------------------------------------

constexpr auto right = table::align::right;

std::string time_text(double seconds) {
  return seconds < 1e-3 ? decimal(seconds * 1e6, seconds < 1e-4 ? 1 : 0) + " us" : decimal(seconds * 1e3, 2) + " ms";
}
std::string giga(double value, int digits = 0) { return decimal(value / 1e9, digits); }
std::string whole_percent(double value) { return decimal(value, 0) + "%"; }
std::string size_or_unknown(std::uint64_t bytes) { return bytes > 0 ? human_bytes(bytes) : "unknown"; }
std::string error_text(double error) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", error);
  return text;
}

void print_machine(const hardware_report& r) {
  std::string found;
  for (const isa_status& c : r.isa.clusters)
    if (c.detected) found += (found.empty() ? "" : ", ") + std::string(c.name) + (c.built ? "" : " (not built)");
  table rows({{"processor"}, {r.isa.cpu + " (" + r.isa.architecture + "), " + giga(r.clock, 2) + " GHz measured"}});
  rows.row({"caches", "L1d " + size_or_unknown(r.caches.l1d) + ", L2 " + size_or_unknown(r.caches.l2) + ", L3 " +
                          size_or_unknown(r.caches.l3)});
  rows.row({"memory", size_or_unknown(r.memory.total)});
  rows.row({"instruction sets", found});
  rows.row({"in use", std::string(r.isa.selected) + (r.isa.overridden ? " (chosen by hand)" : "")});
  rows.row({"huge pages",
            r.huge_pages + "; " + whole_percent(100 * r.huge_part) + " of the weights measured here are in them"});
  rows.row({"load average", r.load < 0 ? "unknown" : decimal(r.load, 1)});
  rows.row({"weights", "rotating over " + human_bytes(r.bytes)});
  rows.row({"waiting", "dispatch " + time_text(r.dispatch) + ", barrier " + time_text(r.barrier) + " with " +
                           std::to_string(r.threads) + (r.threads == 1 ? " thread" : " threads")});
  print(rows.text());
  if (r.load > 0.5)
    print_line(
        red("Other programs are running: figures are lower than on an idle machine, and percentages less sure."));
}

void print_scaling(const hardware_report& r) {
  table rows({{"threads", right},
              {"int8 GOP/s", right},
              {"f32 GFLOP/s", right},
              {"bf16 GFLOP/s", right},
              {"read GB/s", right},
              {"(median)", right},
              {"prefill GOP/s", right},
              {"decode GB/s", right}});
  for (const measure::scaling_figures& s : r.scaling)
    rows.row({std::to_string(s.threads), giga(s.best.int8), giga(s.best.f32), s.best.bf16 > 0 ? giga(s.best.bf16) : "-",
              giga(s.best.read, 1), giga(s.median_read, 1), giga(s.prefill), giga(s.decode, 1)});
  print("\n" + bold("Roofs") + " and what " + type_of(r.prefetch_weight) + " products reach\n" + rows.text(2));
}

/// One row per format: time and percent of the binding roof for every number of rows.
void print_products(const hardware_report& r, product_shape shape) {
  std::vector<std::int64_t> columns;
  for (const product_figures& p : r.products)
    if (std::find(columns.begin(), columns.end(), p.m) == columns.end()) columns.push_back(p.m);
  print("\n" + bold("Products") + " with weights [" + std::to_string(shape.n) + ", " + std::to_string(shape.k) +
        "]: time and percent of the roof, r: reading, c: computing\n");
  std::string header = "  " + std::string(12, ' ');
  const auto padded = [](std::string text, std::size_t width) {
    return std::string(width - std::min(width, display_width(text)), ' ') + text;
  };
  for (const std::int64_t m : columns) header += padded("M = " + std::to_string(m), 16);
  header += padded("GB/s", 8) + padded("GOP/s", 8) + padded("error", 9);
  print_line(header);
  for (std::size_t i = 0; i < r.products.size();) {
    const dtype type = r.products[i].weight;
    const product_shape own = r.products[i].shape;
    std::string line = "  " + type_of(type);
    line += std::string(14 - std::min<std::size_t>(14, line.size()), ' ');
    double read = 0, compute = 0, error = 0;
    for (; i < r.products.size() && r.products[i].weight == type && r.products[i].shape.n == own.n &&
           r.products[i].shape.k == own.k;
         ++i) {
      const product_figures& p = r.products[i];
      line += padded(time_text(p.seconds.min) + padded(whole_percent(p.pct_roof()), 5) + (p.memory_bound() ? "r" : "c"),
                     15);
      read = std::max(read, p.bytes / p.seconds.min);
      compute = std::max(compute, p.operations / p.seconds.min);
      error = std::max(error, p.max_error);
    }
    if (own.n == shape.n && own.k == shape.k)
      print_line(line + padded(giga(read, 1), 8) + padded(giga(compute), 8) + padded(error_text(error), 9));
  }
}

void print_every_product(const hardware_report& r) {
  table rows({{"kernel"},
              {"weights"},
              {"M", right},
              {"time", right},
              {"median", right},
              {"GOP/s", right},
              {"GB/s", right},
              {"of roof", right},
              {"roof"},
              {"error", right}});
  for (const product_figures& p : r.products)
    rows.row({p.kernel, std::to_string(p.shape.n) + "x" + std::to_string(p.shape.k), std::to_string(p.m),
              time_text(p.seconds.min), time_text(p.seconds.median), giga(p.operations / p.seconds.min, 1),
              giga(p.bytes / p.seconds.min, 1), decimal(p.pct_roof(), 1) + "%", roof_name(p), error_text(p.max_error)});
  print("\n" + bold("Products") + "\n" + rows.text(2));
}

void print_rest(const hardware_report& r, const model_speeds& speeds) {
  table models(
      {{"1.1B parameters"}, {"packing GB/s", right}, {"prefill 512", right}, {"decode 128", right}, {"tokens/s"}});
  for (std::size_t i = 0; i < speeds.predicted.size(); ++i) {
    const speed& s = speeds.predicted[i];
    models.row({type_of(s.weight), giga(r.packs[i].bytes_per_second, 1), decimal(s.prefill, 0), decimal(s.decode, 1),
                "predicted"});
    if (speeds.measured && speeds.measured->weight == s.weight)
      models.row({type_of(s.weight), "", decimal(speeds.measured->prefill, 0), decimal(speeds.measured->decode, 1),
                  "measured"});
  }
  print("\n" + bold("Models") + "\n" + models.text(2));
  std::string line;
  const measure::prefetch_figures* best = &r.prefetch.front();
  for (const measure::prefetch_figures& p : r.prefetch) {
    line += (line.empty() ? "" : ", ") + std::to_string(p.distance / 1024) + " KiB " + giga(p.bytes_per_second, 1);
    if (p.bytes_per_second > best->bytes_per_second) best = &p;
  }
  print("\n" + bold("Prefetching") + " ahead of decoding, " + type_of(r.prefetch_weight) + ", GB/s: " + line +
        "; best " + std::to_string(best->distance / 1024) + " KiB\n");
  const auto count = [](unsigned n) { return std::to_string(n) + (n == 1 ? " thread" : " threads"); };
  print("\n" + bold("Recommended") + ": " + count(r.prefill_threads) + " for prefill, " + count(r.decode_threads) +
        " for decoding (the fewest within 3% of the best): flywheel run -t " +
        std::to_string(std::max(r.prefill_threads, r.decode_threads)) + "\n");
  print(
      "\nTimes are the best repetition and roofs the best burst of the run. A roof is the lower of computing (int8 "
      "dots\n"
      "or f32 multiply-adds) and reading weights. Error: largest, against sums in double, over the RMS of the "
      "results.\n");
}

}  // namespace

int bench_hardware(const hardware_bench_args& args) {
  const interrupt stop;
  measure::hardware_options options;
  options.threads = args.threads;
  options.isa = args.isa;
  options.formats = chosen_formats(args);
  for (const std::string& text : args.shapes) options.shapes.push_back(parse_shape(text));
  if (options.shapes.empty())
    options.shapes.assign(std::begin(default_shapes), std::begin(default_shapes) + (args.quick ? 1 : 2));
  if (args.quick) options.seconds = 0.015;
  options.bytes = static_cast<std::size_t>(args.rotate_mib) << 20;
  if (auto found = detect_isa(args.isa); !found && !args.isa.empty())
    throw usage_error("--isa", found.error().to_string());

  std::optional<output_file> plot;  // before the work: a name that cannot be written should not cost a minute
  if (!args.plot.empty()) plot.emplace(args.plot);
  hardware_report report;
  {
    progress_bar bar("measuring");
    options.control = {
        [&](std::uint64_t done, std::uint64_t total, std::string_view what) { bar.update(done, total, what); },
        stop.token()};
    report = measure::measure_hardware(options).value();
  }
  model_speeds speeds = predict(report);
  // Models of plain numbers would need a temporary file of several GB.
  if (!args.quick && info(report.prefetch_weight)->kind != dtype_kind::real)
    speeds.measured = run_model(report.prefetch_weight, args, stop);

  if (plot) {
    const std::string svg = roofline_svg(report);
    plot->write(std::as_bytes(std::span(svg)));
    plot->finish();
  }
  if (args.json) {
    print_line(dump(hardware_json(report, speeds)));
    return success;
  }
  print_machine(report);
  print_scaling(report);
  if (args.full)
    print_every_product(report);
  else
    for (const product_shape& shape : options.shapes) print_products(report, shape);
  print_rest(report, speeds);
  return success;
}

}  // namespace flywheel::cli
