// What this machine and this build's kernels can do, measured in one go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "flywheel/core/dtype.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "src/measure/machine.hpp"
#include "src/measure/roofs.hpp"
#include "src/measure/timing.hpp"

namespace flywheel::inline v0::measure {

struct product_shape {
  std::int64_t n = 0, k = 0;  ///< Weights [n, k].
};

struct hardware_options {
  unsigned threads = 0;               ///< The most to use; 0: one per physical core.
  std::string isa;                    ///< Empty: the best.
  std::vector<dtype> formats;         ///< Weights of products.
  std::vector<product_shape> shapes;  ///< Rows a multiple of 256.
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 32, 512};
  std::vector<std::size_t> prefetch = {0, 2048, 4096, 8192, 16384, 32768};
  double seconds = 0.04;  ///< For each product; see time_products.
  std::size_t bytes = 0;  ///< Weights to rotate over; 0: uncached_bytes().
  flywheel::control control;
};

/// What a number of threads reaches.
struct scaling_figures {
  unsigned threads = 1;
  roofs best;
  double median_read = 0;
  double prefill = 0;  ///< Operations per second of a 4-bit product of many rows.
  double decode = 0;   ///< Bytes of weights per second of one row.
};

struct product_figures {
  dtype weight{};
  std::string kernel;
  product_shape shape;
  std::int64_t m = 0;
  bool int8 = false;       ///< Held against the int8 roof, else against the f32 one.
  spread seconds;          ///< Per product.
  double operations = 0;   ///< 2 m n k
  double bytes = 0;        ///< Of packed weights, which come from memory.
  double max_error = 0;    ///< See matmul_workload::max_error.
  double pct_compute = 0;  ///< Of the compute roof, in the best repetition.
  double pct_read = 0;     ///< Of the reading roof.
  /// Which roof is the lower one for so many operations per byte: the one that binds.
  [[nodiscard]] bool memory_bound() const noexcept { return pct_read > pct_compute; }
  [[nodiscard]] double pct_roof() const noexcept { return memory_bound() ? pct_read : pct_compute; }
};

struct pack_figures {
  dtype weight{};
  double bytes_per_second = 0;  ///< Of the file's bytes, all threads.
};

struct prefetch_figures {
  std::size_t distance = 0;
  double bytes_per_second = 0;
};

struct hardware_report {
  isa_report isa;
  cache_sizes caches;
  memory_sizes memory;
  std::string huge_pages;
  double huge_part = 0;  ///< Part of the weights that lies in huge pages.
  double load = 0;       ///< Load average before.
  unsigned threads = 1;
  std::size_t bytes = 0;                 ///< Rotated over.
  double clock = 0;                      ///< Cycles per second.
  double dispatch = 0, barrier = 0;      ///< Seconds, on all threads.
  std::vector<scaling_figures> scaling;  ///< 1, 2, 4, ... and all threads.
  std::vector<pack_figures> packs;
  std::vector<product_figures> products;
  dtype prefetch_weight{};
  std::vector<prefetch_figures> prefetch;
  /// The fewest threads within 3% of the best.
  unsigned prefill_threads = 1, decode_threads = 1;
  [[nodiscard]] const roofs& best() const noexcept { return scaling.back().best; }
};

/// Types that this build multiplies with, in the order of the table of kernels.
[[nodiscard]] FLYWHEEL_API std::vector<dtype> product_formats();
/// Errors: those of detect_isa and make_thread_team, invalid_argument (a format without kernels, a shape that is not
/// whole blocks), cancelled, out_of_memory.
[[nodiscard]] FLYWHEEL_API result<hardware_report> measure_hardware(const hardware_options& options);

}  // namespace flywheel::inline v0::measure
