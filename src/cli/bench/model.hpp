// Measuring a whole model: prefill and decode speed against what the machine can do.
#pragma once

#include <cstdint>
#include <string>

#include "cli/args.hpp"
#include "flywheel/io/archive.hpp"
#include "src/measure/roofs.hpp"

namespace flywheel::cli {

struct model_workload {
  std::int32_t prompt = 512;    ///< Tokens of a prefill.
  std::int32_t generate = 128;  ///< Tokens decoded one by one.
  std::int32_t depth = 0;       ///< Positions that are in the context before either.
  std::int32_t sessions = 1;    ///< Sequences that are decoded together, besides one alone, when more than 1.
  int repetitions = 3;
};

/// What a token costs, from the tensors of a file. Experts count by the part of them that a token uses.
struct model_cost {
  double layer_weights = 0;  ///< Multiply-adds of a token in the layers: without embedding and output head.
  double read_bytes = 0;     ///< Bytes of all weights but the embedding; a tied output head does read it.
  bool floats = false;       ///< Most weights are plain numbers, multiplied in f32.
};
[[nodiscard]] model_cost cost_of(const io::archive& file);

struct model_figures {
  measure::spread prefill_tps, decode_tps, first_token;  ///< Tokens per second; seconds.
  measure::spread together_tps;  ///< Tokens per second of all sessions together, when there are several.
  double kv_bytes = 0;           ///< Of keys and values that a decoded token reads, on average.
  std::uint64_t peak_rss = 0;    ///< Before the roofs were measured, which takes memory of its own.
  measure::roofs roofs;
  double median_read = 0;
  double pct_int8_peak = 0, pct_f32_peak = 0;  ///< Of the median prefill.
  double pct_read_bw = 0;                      ///< Weights alone.
  double pct_read_bw_with_kv = 0;
};

/// Runs the workload once unmeasured, then `repetitions` times with the roofs measured before, between and after.
/// `rotate`: bytes for the reading roof, 0: measure::uncached_bytes(). Draws a progress bar. Throws.
[[nodiscard]] model_figures measure_model(const model& loaded, const model_cost& cost, const model_workload& work,
                                          const session_args& session, std::size_t rotate, const interrupt& stop);

/// A file in the system's folder for temporary ones, gone at the end.
class temporary_file {
 public:
  explicit temporary_file(const std::string& suffix);
  ~temporary_file();
  temporary_file(const temporary_file&) = delete;
  temporary_file& operator=(const temporary_file&) = delete;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

/// `flywheel bench model`
struct model_bench_args {
  model_args model;
  session_args session;
  adapter_args adapters;
  std::int64_t adapter_rank = 0;  ///< Of random adapters, one for each session; 0: none.
  model_workload work;
  std::string type = "q4_0";
  bool type_given = false;
  std::uint64_t rotate_mib = 0;
  bool json = false;
};
int bench_model(model_bench_args args);

}  // namespace flywheel::cli
