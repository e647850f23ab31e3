// One step of a merge plan at work: its inputs are read and decoded slice by slice, looked at as often as the method
// needs, and combined into rows of the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flywheel/adapt/merge_models.hpp"
#include "src/model/row_reader.hpp"

namespace flywheel::inline v0::adapt {

/// Memory of one worker, used again from tensor to tensor.
struct merge_scratch {
  std::vector<detail::row_reader::scratch> inputs;
  std::vector<const float*> models;
  std::vector<float> merged;
  std::vector<std::uint64_t> counts;
};

/// What steps need in memory, at most: of each worker unless it says otherwise.
struct merge_room {
  std::vector<std::size_t> values, stored;  ///< [inputs] floats and bytes of decoded and of unmapped slices.
  std::size_t merged = 0, counts = 0;       ///< Numbers.
  std::uint64_t method = 0, encoder = 0;    ///< Bytes.
  std::uint64_t shared = 0;                 ///< Bytes of all workers together.
  std::uint64_t piece = 0;                  ///< Bytes of the longest row of the result.

  /// A step that does not fit its models or its method adds what is known of it.
  void add(const merge_plan& plan, const merge_step& step, unsigned workers);
  [[nodiscard]] std::uint64_t bytes(unsigned workers) const noexcept;
  /// [workers], allocated once for all steps.
  [[nodiscard]] std::vector<merge_scratch> scratch(unsigned workers) const;
};

/// Refers to the plan, which must outlive it. Not thread-safe but where it says so. Functions may throw std::bad_alloc.
class tensor_merge {
 public:
  /// Errors: invalid_argument (a step that does not fit its models or its method), unsupported (a type without decoder
  /// or encoder), naming the tensor.
  [[nodiscard]] static result<tensor_merge> create(const merge_plan& plan, const merge_step& step, const context& ctx);

  /// The input whose stored bytes are the result; null when there is something to compute.
  struct source {
    const io::archive* model;
    const io::tensor_info* tensor;
  };
  [[nodiscard]] const source* copied() const noexcept { return copied_ ? &sources_.front() : nullptr; }
  [[nodiscard]] std::int64_t rows_at_once() const noexcept { return merge::slice_rows(step_->dims.cols()); }
  /// Of the inputs' tensors: in every pass so far, and for the result.
  [[nodiscard]] std::uint64_t bytes_read() const noexcept { return bytes_of_inputs() * (passes_ + 1); }

  /// Everything that is to be known before the first row. `scratch` [workers]. `between` is called every few
  /// milliseconds; its error ends the passes. Errors: invalid_argument (NaN or infinity, naming file, tensor and
  /// element), io.
  [[nodiscard]] result<void> look(std::span<merge_scratch> scratch, function_ref<result<void>()> between);
  /// Rows of the result, `count` of them from `first` on, a multiple of rows_at_once(). Several threads at once, each
  /// with a scratch of its own. Errors: those of look; invalid_argument (a value that the type cannot hold).
  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, merge_scratch& scratch,
                                  std::span<std::byte> stored) const;
  /// The inputs are not needed again.
  void release() const noexcept;

 private:
  tensor_merge(const merge_step& step, const context& ctx) : step_(&step), ctx_(ctx) {}
  [[nodiscard]] result<void> open(const merge_plan& plan, const merge_step::input& input);
  result<void> look_once(const merge::pass& wanted, std::span<merge_scratch> scratch,
                         function_ref<result<void>()> between);
  [[nodiscard]] std::uint64_t bytes_of_inputs() const noexcept;
  /// Rows of all inputs, decoded into `scratch`.
  [[nodiscard]] result<merge::slice> read(std::int64_t first, std::int64_t count, merge_scratch& scratch) const;
  [[nodiscard]] result<void> encode(std::span<const float> rows, std::int64_t first, std::span<std::byte> stored) const;
  [[nodiscard]] std::span<const double> before(std::int64_t slice) const noexcept;
  void release_rows(std::int64_t first, std::int64_t count) const noexcept;

  const merge_step* step_;
  context ctx_;                  ///< Of all workers,
  context serial_;               ///< and of one.
  std::vector<source> sources_;  ///< Models, then the base.
  std::vector<detail::row_reader> readers_;
  std::unique_ptr<merge::merger> method_;
  bool copied_ = false;
  bool checked_ = false;        ///< All inputs are known to be finite.
  std::vector<double> before_;  ///< [slices][width_]: sums of the last ordered pass before each slice.
  std::size_t width_ = 0;
  std::uint64_t passes_ = 0;
};

}  // namespace flywheel::inline v0::adapt
