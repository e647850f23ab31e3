// Merging models: from a recipe, or from a plan of one's own, to a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/adapt/merge/method.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::adapt {

/// One tensor of the result, and how it comes about.
struct merge_step {
  std::string name;
  shape dims;
  dtype type = dtype::f16;
  const merge::method* how = nullptr;  ///< Null: a copy of the one input.
  struct input {
    std::size_t model = 0;  ///< Index into merge_plan::models.
    std::string tensor;
  };
  std::vector<input> inputs;  ///< Of the result's extents.
  std::optional<input> base;
  std::vector<double> parameters;  ///< As merge::task has them.
};

/// Everything about a merge but the doing. Plain data.
struct merge_plan {
  std::vector<io::archive> models;  ///< Of any float or quantized type; with GGUF's names.
  io::metadata metadata;            ///< Of the result.
  std::vector<merge_step> steps;    ///< In file order.
  std::uint64_t seed = 0;
  /// Bytes that merge_models holds at once with `workers` workers, at most: beside pages of mapped files (of inputs up
  /// to 256 MiB a tensor, else some MiB), what computed inputs keep, and device formats in safetensors, whose scales
  /// wait for their codes. merge_in_memory holds the result too. Steps that do not fit count as far as they can.
  [[nodiscard]] FLYWHEEL_API std::uint64_t peak_memory(unsigned workers) const;
};

struct merge_options {
  flywheel::context context = {};  ///< Threads; empty: one with default options is created.
  flywheel::control control = {};  ///< Progress in bytes written, and cancellation.
  /// Called once when all tensors of a file are written: texts of the metadata that become others of the same length,
  /// such as digests of parents that are computed meanwhile. Its error is the merge's, and leaves no file. May be
  /// empty.
  std::function<result<std::vector<std::pair<std::string, std::string>>>()> amend = {};
};

struct merge_report {
  std::uint64_t tensors = 0, copied = 0;
  std::uint64_t bytes = 0;       ///< Of the result's tensors.
  std::uint64_t bytes_read = 0;  ///< Of the inputs' tensors, in each pass and for the result, and of copies.
  double seconds = 0;
};

/// Merges into `out`: GGUF, or safetensors where the name ends with .safetensors. A few MiB of every model are in
/// memory at once. Tensors that are copied are not looked at. The file appears under its name only when it is complete.
/// The same bytes for any number of threads. Errors: invalid_argument (a plan that does not fit its models; NaN or
/// infinity in a weight, naming file and tensor, or a result that its type cannot hold; `out` is one of the inputs),
/// unsupported (a type without decoder or encoder), cancelled, io, out_of_memory.
[[nodiscard]] FLYWHEEL_API result<merge_report> merge_models(const merge_plan& plan, const std::filesystem::path& out,
                                                             const merge_options& options = {});
/// The same as an archive in memory, whose matrices are f16 where a step says f16 (for searches over recipes).
[[nodiscard]] FLYWHEEL_API result<io::archive> merge_in_memory(const merge_plan& plan,
                                                               const merge_options& options = {});

/// By name; null when there is none.
[[nodiscard]] FLYWHEEL_API const merge::method* find_merge_method(std::string_view name) noexcept;
/// All of them, in the order of methods.inc.
[[nodiscard]] FLYWHEEL_API std::vector<const merge::method*> merge_methods();

}  // namespace flywheel::inline v0::adapt
