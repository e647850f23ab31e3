#include "cli/bench/adapters.hpp"

#include <cmath>
#include <ctime>
#include <random>
#include <string>

#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/formats/half.hpp"
#include "flywheel/io/writer.hpp"
#include "flywheel/model/batch.hpp"

namespace flywheel::cli {
namespace {

double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

/// Times of two ways to do the same, which take turns.
class turns {
 public:
  template <class Body>
  void measure(bool with, Body&& body) {
    const double before = processor_seconds();
    seconds_[with].push_back(measure::timed(body));
    cpu_[with] += processor_seconds() - before;
  }
  [[nodiscard]] adapter_cost cost() const {
    return {measure::spread_of(seconds_[0]).median, measure::spread_of(seconds_[1]).median, cpu_[0], cpu_[1]};
  }

 private:
  std::vector<double> seconds_[2];
  double cpu_[2] = {0, 0};
};

adapter_cost measure_together(const model& loaded, const std::vector<adapter_use>& uses, const model_workload& work,
                              const session_options& options, const control& quietly) {
  const std::int32_t n_vocab = loaded.info().n_vocab;
  turns times;
  batch sequences = batch::create(loaded, options).value();
  std::vector<batch::member> members;
  for (std::int32_t i = 0; i < work.sessions; ++i)
    members.push_back(sequences.join(some_tokens(work.depth + 1, n_vocab, static_cast<std::uint32_t>(i) + 2)).value());
  while (sequences.pending() > 0) (void)sequences.step(quietly).value();
  const std::vector<token_id> next = some_tokens(2 * work.generate, n_vocab);
  for (std::size_t t = 0; t < next.size(); ++t) {
    const bool with = t % 2 == 1;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const std::span<const adapter_use> own(&uses[i % uses.size()], with ? 1 : 0);
      sequences.set_adapters(members[i], own).value();
      sequences.append(members[i], {&next[t], 1}).value();
    }
    times.measure(with, [&] { (void)sequences.step(quietly).value(); });
  }
  return times.cost();
}

}  // namespace

adapter_figures measure_adapters(const model& loaded, const std::vector<adapter_use>& uses, const model_workload& work,
                                 const session_args& cache, const interrupt& stop) {
  const control quietly{{}, stop.token()};
  const std::int32_t n_vocab = loaded.info().n_vocab;
  session_options options = cache.options();
  options.n_ctx = work.depth + 1 + std::max(work.prompt, 2 * work.generate);
  adapter_figures f;
  for (const adapter_use& use : uses) f.bytes += use.adapter.info().bytes;
  const std::span<const adapter_use> one(uses.data(), 1);
  session sequence = loaded.new_session(options).value();
  progress_bar bar("measuring adapters");
  const auto steps = static_cast<std::uint64_t>(work.repetitions) + 1;
  bar.update(0, steps, "attach");
  std::vector<double> attaches, detaches;
  for (int i = 0; i < 101; ++i) {
    attaches.push_back(measure::timed([&] { sequence.set_adapters(one).value(); }));
    detaches.push_back(measure::timed([&] { sequence.set_adapters({}).value(); }));
  }
  f.attach = measure::spread_of(attaches).max;
  f.detach = measure::spread_of(detaches).max;
  if (work.depth > 0) sequence.prefill(some_tokens(work.depth, n_vocab), quietly).value();
  const auto kept = static_cast<std::size_t>(work.depth);
  const std::vector<token_id> prompt = some_tokens(work.prompt, n_vocab),
                              next = some_tokens(2 * work.generate, n_vocab);
  const auto choose = [&](bool with) { sequence.set_adapters(with ? one : std::span<const adapter_use>()).value(); };
  turns prefills, decodes;
  for (int i = 0; i <= work.repetitions; ++i) {  // the first time is for warming up
    bar.update(static_cast<std::uint64_t>(i), steps, "one session");
    turns warm;
    for (const bool with : {false, true}) {
      choose(with);
      (i == 0 ? warm : prefills).measure(with, [&] { sequence.prefill(prompt, quietly).value(); });
      sequence.truncate(kept).value();
    }
    for (std::size_t t = 0; t < next.size(); ++t) {
      const bool with = t % 2 == 1;
      choose(with);
      (i == 0 ? warm : decodes).measure(with, [&] { sequence.decode(next[t], quietly).value(); });
    }
    sequence.truncate(kept).value();
  }
  f.prefill = prefills.cost();
  f.decode = decodes.cost();
  if (work.sessions > 1) {
    bar.update(steps - 1, steps, "sessions together");
    f.together = measure_together(loaded, uses, work, options, quietly);
  }
  return f;
}

std::vector<adapter_use> random_adapters(const model& loaded, const io::archive& file, std::int64_t rank,
                                         std::int32_t count, const interrupt& stop) {
  std::vector<adapter_use> uses;
  std::mt19937 random(1);
  for (std::int32_t i = 0; i < count; ++i) {
    const temporary_file made(".gguf");
    io::metadata meta;
    meta.set("general.type", std::string("adapter"));
    meta.set("adapter.type", std::string("lora"));
    meta.set("general.architecture", std::string(file.metadata().string("general.architecture").value()));
    meta.set("general.name", "random " + std::to_string(i + 1));
    meta.set("adapter.lora.alpha", static_cast<float>(rank));
    std::vector<io::tensor_plan> plans;
    for (const io::tensor_info& t : file.tensors()) {
      if (!t.name.starts_with("blk.") || t.dims.rank() != 2) continue;
      plans.push_back({t.name + ".lora_a", dtype::f16, {rank, t.dims[1]}, 0});
      plans.push_back({t.name + ".lora_b", dtype::f16, {t.dims[0], rank}, 0});
    }
    io::writer out = io::writer::create(made.path(), io::container::gguf, meta, plans).value();
    for (const io::tensor_plan& plan : plans) {
      const double most = 1 / std::sqrt(static_cast<double>(plan.dims.cols())) / 8;
      std::vector<std::uint16_t> values(static_cast<std::size_t>(plan.dims.elements()));
      for (std::uint16_t& x : values)
        x = formats::f32_to_f16(static_cast<float>((static_cast<double>(random()) / 2147483648.0 - 1) * most));
      out.write(std::as_bytes(std::span(values))).value();
    }
    out.finish().value();
    uses.push_back({adapter::open(loaded, made.path(), {{}, stop.token()}).value(), 1});
  }
  return uses;
}

json adapter_json(const adapter_figures& f) {
  const auto cost = [](const adapter_cost& c) {
    return json{{"seconds_without", c.without},
                {"seconds_with", c.with},
                {"speed", c.speed()},
                {"processor_speed", c.cpu_without / c.cpu_with}};
  };
  json out = {{"bytes", f.bytes},
              {"attach_us", f.attach * 1e6},
              {"detach_us", f.detach * 1e6},
              {"prefill", cost(f.prefill)},
              {"decode", cost(f.decode)}};
  if (f.together.with > 0) out["together"] = cost(f.together);
  return out;
}

void print_adapters(const adapter_figures& f, const model_workload& work) {
  const auto right = table::align::right;
  table rows({{"adapters"}, {"ms without", right}, {"ms with", right}, {"speed", right}, {"by processor time", right}});
  const auto add = [&](const std::string& what, const adapter_cost& c) {
    rows.row({what, decimal(c.without * 1e3, 2), decimal(c.with * 1e3, 2), decimal(c.speed(), 3),
              decimal(c.cpu_without / c.cpu_with, 3)});
  };
  add("prefill of " + grouped(work.prompt), f.prefill);
  add("token of one session", f.decode);
  if (work.sessions > 1) add("step of " + std::to_string(work.sessions) + " sessions, each with another", f.together);
  print("\n" + rows.text());
  print_line("\nAdapters hold " + human_bytes(f.bytes) + "; attached in at most " + decimal(f.attach * 1e6, 1) +
             " us, detached in " + decimal(f.detach * 1e6, 1) + " us. Medians of turns without and with.");
}

}  // namespace flywheel::cli
