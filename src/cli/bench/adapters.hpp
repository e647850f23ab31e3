// What adapters cost: a model with them beside the same model without, in turns.
#pragma once

#include <cstddef>
#include <vector>

#include "cli/bench/model.hpp"
#include "cli/output.hpp"
#include "flywheel/model/adapter.hpp"

namespace flywheel::cli {

/// Seconds of the same work without and with adapters: medians, each of as many measurements in turns.
struct adapter_cost {
  double without = 0, with = 0;
  double cpu_without = 0, cpu_with = 0;  ///< Processor time of the whole process, summed.
  /// With adapters, the part of the speed without.
  [[nodiscard]] double speed() const { return without / with; }
};

struct adapter_figures {
  std::size_t bytes = 0;          ///< Of all adapters.
  double attach = 0, detach = 0;  ///< Seconds of session::set_adapters: medians; the first time included.
  adapter_cost prefill, decode;   ///< Of one session; a prefill, a token.
  adapter_cost together;          ///< Of a step of `sessions` sessions, each with another adapter in turn.
};

/// `uses`: the first session has them all, session i of several uses[i % size] alone. Draws a progress bar. Throws.
[[nodiscard]] adapter_figures measure_adapters(const model& loaded, const std::vector<adapter_use>& uses,
                                               const model_workload& work, const session_args& session,
                                               const interrupt& stop);

/// Adapters of that rank with random f16 factors for every matrix of the layers of a model file. Throws.
[[nodiscard]] std::vector<adapter_use> random_adapters(const model& loaded, const io::archive& file, std::int64_t rank,
                                                       std::int32_t count, const interrupt& stop);

[[nodiscard]] json adapter_json(const adapter_figures& f);
void print_adapters(const adapter_figures& f, const model_workload& work);

/// The same tokens every time for a seed; what they are does not change how long they take.
[[nodiscard]] std::vector<token_id> some_tokens(std::int32_t count, std::int32_t n_vocab, std::uint32_t seed = 1);

}  // namespace flywheel::cli
