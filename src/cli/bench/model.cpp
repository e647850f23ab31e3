#include "cli/bench/model.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <random>
#include <system_error>
#include <vector>

#include "cli/bench/adapters.hpp"
#include "cli/command.hpp"
#include "cli/default_model.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "cli/synth.hpp"
#include "flywheel/model/batch.hpp"
#include "flywheel/model/open.hpp"
#include "src/measure/machine.hpp"

namespace flywheel::cli {
namespace {

using measure::spread;
using measure::timed;

/// Tokens per second of sequences that are decoded together, from `work.depth` positions on. They differ from the
/// first token on, so that none of them shares pages with another.
double decode_together(const model& loaded, const model_workload& work, const session_options& options,
                       const control& quietly) {
  batch sequences = batch::create(loaded, options).value();
  const std::int32_t n_vocab = loaded.info().n_vocab;
  std::vector<batch::member> members;
  std::vector<std::vector<token_id>> next;
  for (std::int32_t i = 0; i < work.sessions; ++i) {
    const auto seed = static_cast<std::uint32_t>(i) + 2;
    members.push_back(sequences.join(some_tokens(work.depth + 1, n_vocab, seed)).value());
    next.push_back(some_tokens(work.generate, n_vocab, seed + 1));
  }
  while (sequences.pending() > 0) (void)sequences.step(quietly).value();
  const double seconds = timed([&] {
    for (std::size_t t = 0; t < next.front().size(); ++t) {
      for (std::size_t i = 0; i < members.size(); ++i) sequences.append(members[i], {&next[i][t], 1}).value();
      (void)sequences.step(quietly).value();
    }
  });
  return static_cast<double>(work.generate) * work.sessions / seconds;
}

double per_second(double count, double seconds) { return count / seconds; }

std::string percent(double value) { return decimal(value, 1) + "%"; }

/// A percentage of the median as one of the best repetition.
double of_best(double pct, const spread& tps) { return pct * tps.max / tps.median; }

/// "38.4% (best 40.1%)"
std::string percent(double value, const spread& tps) {
  return percent(value) + " (best " + percent(of_best(value, tps)) + ")";
}

std::string range(const spread& s, int digits) { return decimal(s.min, digits) + " - " + decimal(s.max, digits); }

}  // namespace

std::vector<token_id> some_tokens(std::int32_t count, std::int32_t n_vocab, std::uint32_t seed) {
  std::vector<token_id> ids;
  std::uint32_t state = seed;
  while (static_cast<std::int32_t>(ids.size()) < count) {
    state = state * 1664525U + 1013904223U;
    ids.push_back(static_cast<token_id>((state >> 8) % static_cast<std::uint32_t>(n_vocab)));
  }
  return ids;
}

model_cost cost_of(const io::archive& file) {
  model_cost cost;
  const auto architecture = file.metadata().string("general.architecture");
  const auto number = [&](const std::string& key) {
    return static_cast<double>(file.metadata().integer(std::string(architecture.value_or("")) + key).value_or(0));
  };
  const double experts = number(".expert_count"), used = number(".expert_used_count");
  const bool tied = file.find("output.weight") == nullptr;
  double float_bytes = 0;
  for (const io::tensor_info& t : file.tensors()) {
    const bool embedding = t.name == "token_embd.weight", head = t.name == "output.weight";
    const bool part = t.name.find("_exps.") != std::string::npos && experts > 0;
    const double share = part ? used / experts : 1;
    const double bytes = static_cast<double>(t.bytes) * share;
    if (!embedding || tied) cost.read_bytes += bytes;
    if (t.dims.rank() < 2 || embedding || head) continue;
    cost.layer_weights += static_cast<double>(t.dims.elements()) * share;
    const dtype_info* type = info(t.type);
    float_bytes += type != nullptr && type->kind == dtype_kind::real ? bytes : -bytes;
  }
  cost.floats = float_bytes > 0;
  return cost;
}

model_figures measure_model(const model& loaded, const model_cost& cost, const model_workload& work,
                            const session_args& cache, std::size_t rotate, const interrupt& stop) {
  const control quietly{{}, stop.token()};
  const std::vector<token_id> prompt = some_tokens(work.prompt, loaded.info().n_vocab);
  const std::vector<token_id> next = some_tokens(work.generate, loaded.info().n_vocab);
  session_options options = cache.options();
  options.n_ctx = work.depth + 1 + std::max(work.prompt, work.generate);
  session sequence = loaded.new_session(options).value();
  progress_bar bar("measuring");
  const auto steps = static_cast<std::uint64_t>(work.repetitions) + 1;
  std::uint64_t done = 0;
  const auto advance = [&](const char* what) { bar.update(done, steps, what); };

  advance("warming up");
  if (work.depth > 0) sequence.prefill(some_tokens(work.depth, loaded.info().n_vocab), quietly).value();
  const auto prefill = [&] { sequence.prefill(prompt, quietly).value(); };
  const auto decode = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sequence.decode(next[i], quietly).value();
  };
  model_figures f;
  prefill();
  const double pages = static_cast<double>((work.depth + work.prompt + 63) / 64);
  const double position_bytes = static_cast<double>(sequence.kv_bytes()) / (pages * 64);
  f.kv_bytes = position_bytes * (work.depth + 0.5 * work.generate);
  const auto kept = static_cast<std::size_t>(work.depth);
  sequence.truncate(kept).value();
  decode(std::min<std::size_t>(next.size(), 8));
  sequence.truncate(kept).value();
  f.peak_rss = measure::peak_resident_bytes();

  executor& pool = loaded.context().executor();
  const buffer area = measure::make_area(pool, rotate).value();
  measure::roof_meter meter(pool, loaded.context().isa().selected, area.bytes());
  std::vector<double> prefills, firsts, decodes, together;
  for (int i = 0; i < work.repetitions; ++i) {
    ++done;
    advance("prefill");
    meter.measure();
    token_id first = 0;
    double read = 0;
    firsts.push_back(timed([&] {
      read = timed(prefill);
      const std::span<const float> logits = sequence.logits();
      first = static_cast<token_id>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }));
    prefills.push_back(per_second(work.prompt, read));
    sequence.truncate(kept).value();
    advance("decode");
    meter.measure();
    decodes.push_back(per_second(work.generate, timed([&] { decode(next.size()); })));
    sequence.truncate(kept).value();
    if (work.sessions > 1) {
      advance("decode together");
      together.push_back(decode_together(loaded, work, options, quietly));
    }
  }
  meter.measure();
  f.prefill_tps = measure::spread_of(prefills);
  f.decode_tps = measure::spread_of(decodes);
  f.first_token = measure::spread_of(firsts);
  if (work.sessions > 1) f.together_tps = measure::spread_of(together);
  f.roofs = meter.best();
  f.median_read = meter.median_read();
  const double operations = 2 * cost.layer_weights * f.prefill_tps.median;
  f.pct_int8_peak = 100 * operations / f.roofs.int8;
  f.pct_f32_peak = 100 * operations / f.roofs.f32;
  f.pct_read_bw = 100 * cost.read_bytes * f.decode_tps.median / f.roofs.read;
  f.pct_read_bw_with_kv = 100 * (cost.read_bytes + f.kv_bytes) * f.decode_tps.median / f.roofs.read;
  return f;
}

temporary_file::temporary_file(const std::string& suffix)
    : path_((std::filesystem::temp_directory_path() / ("flywheel-" + std::to_string(std::random_device{}()) + suffix))
                .string()) {}

temporary_file::~temporary_file() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

namespace {

json spread_json(const spread& s, double scale = 1) {
  return {{"min", s.min * scale}, {"median", s.median * scale}, {"max", s.max * scale}};
}

json model_json(const model_bench_args& args, const std::string& name, const model& loaded, const model_cost& cost,
                double load, const model_figures& f) {
  json sessions;  // null unless there are several
  if (args.work.sessions > 1)
    sessions = {{"count", args.work.sessions},
                {"tokens", args.work.generate},
                {"tps", f.together_tps.median},
                {"times_one", f.together_tps.median / f.decode_tps.median},
                {"tps_spread", spread_json(f.together_tps)}};
  return {{"model", name},
          {"type", loaded.info().weights},
          {"threads", loaded.context().executor().concurrency()},
          {"isa", loaded.context().isa().selected},
          {"kv_type", args.session.kv_type},
          {"depth", args.work.depth},
          {"repetitions", args.work.repetitions},
          {"prefill",
           {{"tokens", args.work.prompt},
            {"tps", f.prefill_tps.median},
            {"pct_int8_peak", f.pct_int8_peak},
            {"pct_int8_peak_best", of_best(f.pct_int8_peak, f.prefill_tps)},
            {"pct_f32_peak", f.pct_f32_peak},
            {"tps_spread", spread_json(f.prefill_tps)}}},
          {"decode",
           {{"tokens", args.work.generate},
            {"tps", f.decode_tps.median},
            {"pct_read_bw", f.pct_read_bw},
            {"pct_read_bw_best", of_best(f.pct_read_bw, f.decode_tps)},
            {"pct_read_bw_with_kv", f.pct_read_bw_with_kv},
            {"tps_spread", spread_json(f.decode_tps)}}},
          {"sessions", sessions},
          {"first_token_ms", f.first_token.median * 1e3},
          {"load_ms", load * 1e3},
          {"peak_rss_bytes", f.peak_rss},
          {"weights",
           {{"layer_multiply_adds", cost.layer_weights},
            {"read_bytes", cost.read_bytes},
            {"packed_bytes", loaded.weight_bytes()},
            {"kv_bytes_per_token", f.kv_bytes}}},
          {"roofs",
           {{"int8_ops_per_second", f.roofs.int8},
            {"f32_ops_per_second", f.roofs.f32},
            {"bf16_ops_per_second", f.roofs.bf16},
            {"read_bytes_per_second", f.roofs.read},
            {"median_read_bytes_per_second", f.median_read}}}};
}

void print_model(const model_bench_args& args, const std::string& name, const model& loaded, const model_cost& cost,
                 double load, const model_figures& f) {
  const unsigned threads = loaded.context().executor().concurrency();
  print_line(bold(printable(name)) + ", weights mostly " + printable(loaded.info().weights) + ", " +
             human_bytes(loaded.weight_bytes()) + " packed; " + std::to_string(threads) +
             (threads == 1 ? " thread, " : " threads, ") + std::string(loaded.context().isa().selected) +
             ", KV cache " + args.session.kv_type);
  if (args.work.depth > 0) print_line("after " + grouped(args.work.depth) + " positions of context");
  const auto right = table::align::right;
  table rows({{""}, {"tokens", right}, {"tokens/s", right}, {"min - max", right}, {"of what the machine can do"}});
  const std::string peak = cost.floats ? percent(f.pct_f32_peak, f.prefill_tps) + " of the f32 peak, " +
                                             decimal(f.roofs.f32 / 1e9, 0) + " GFLOP/s"
                                       : percent(f.pct_int8_peak, f.prefill_tps) + " of the int8 dot peak, " +
                                             decimal(f.roofs.int8 / 1e9, 0) + " GOP/s";
  rows.row({"prefill", grouped(args.work.prompt), decimal(f.prefill_tps.median, 1), range(f.prefill_tps, 1), peak});
  std::string read = percent(f.pct_read_bw, f.decode_tps) + " of reading, " + decimal(f.roofs.read / 1e9, 1) + " GB/s";
  if (f.pct_read_bw_with_kv - f.pct_read_bw >= 1)
    read += "; " + percent(f.pct_read_bw_with_kv) + " with keys and values";
  rows.row({"decode", grouped(args.work.generate), decimal(f.decode_tps.median, 1), range(f.decode_tps, 1), read});
  if (args.work.sessions > 1)
    rows.row({std::to_string(args.work.sessions) + " sessions", grouped(args.work.generate),
              decimal(f.together_tps.median, 1), range(f.together_tps, 1),
              "all together, " + decimal(f.together_tps.median / f.decode_tps.median, 2) + " times one alone"});
  print("\n" + rows.text());
  table more({{"first token"}, {decimal(f.first_token.median * 1e3, 1) + " ms", right}});
  more.row({"load", decimal(load * 1e3, 0) + " ms"});
  more.row({"peak memory", human_bytes(f.peak_rss)});
  print("\n" + more.text());
  print_line(
      "\nMedians of " + std::to_string(args.work.repetitions) +
      " repetitions against the best bursts of multiply-adds and of reading in between (median of reading:\n" +
      decimal(f.median_read / 1e9, 1) +
      " GB/s). Prefill: 2 operations per layer weight and token. Decode: bytes of all weights but the embedding.");
}

}  // namespace

int bench_model(model_bench_args args) {
  const interrupt stop;
  std::error_code ignored;
  const model_shape* shape = find_model_shape(args.model.path);
  if (std::filesystem::exists(args.model.path, ignored)) shape = nullptr;
  if (shape == nullptr && args.type_given)
    throw usage_error("--type", "is for shapes (" + model_shape_names() + "); a file has its types");
  const std::string name = shape != nullptr          ? shape->name
                           : args.model.path.empty() ? default_model_name()
                                                     : std::filesystem::path(args.model.path).filename().string();
  std::optional<temporary_file> made;
  if (shape != nullptr) {
    const dtype type = synthetic_type(args.type, *shape, "--type");
    // What is wrong with the command line is said before writing.
    (void)used_devices(args.model.devices, args.model.make_context());
    made.emplace(".gguf");
    write_synthetic(*shape, type, made->path(), 1, stop);
    args.model.path = made->path();
  }
  used_devices devices;
  model loaded;
  const double load = timed([&] { loaded = args.model.open(stop, devices); });
  const io::archive file = args.model.path.empty() ? io::archive::open(default_model()).value()
                                                   : open_model_archive(args.model.path).value();
  const model_cost cost = cost_of(file);
  std::vector<adapter_use> adapters = args.adapters.open(loaded, stop);
  if (args.adapter_rank > 0) adapters = random_adapters(loaded, file, args.adapter_rank, args.work.sessions, stop);
  const model_figures f =
      measure_model(loaded, cost, args.work, args.session, static_cast<std::size_t>(args.rotate_mib) << 20, stop);
  std::optional<adapter_figures> with;
  if (!adapters.empty()) with = measure_adapters(loaded, adapters, args.work, args.session, stop);
  if (args.json) {
    json all = model_json(args, name, loaded, cost, load, f);
    if (with) all["adapters"] = adapter_json(*with);
    print_line(dump(all));
  } else {
    print_model(args, name, loaded, cost, load, f);
    if (with) print_adapters(*with, args.work);
  }
  devices.finish();
  return success;
}

}  // namespace flywheel::cli
