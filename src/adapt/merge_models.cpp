#include "flywheel/adapt/merge_models.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/adapt/merge/tensor_merge.hpp"
#include "src/core/run_tasks.hpp"
#include "src/io/byte_source.hpp"
#include "src/model/tensor_pipeline.hpp"

namespace flywheel::inline v0::adapt {
namespace {

/// Of plans, files and errors, of a merge and of each of its tensors.
constexpr std::uint64_t fixed = std::uint64_t{256} << 10, per_tensor = 2048;

/// What will be written, after everything was checked that can be known to fail before.
result<std::vector<io::tensor_plan>> tensors_of(const merge_plan& plan, const context& ctx) {
  if (plan.steps.empty()) return error{errc::invalid_argument, "the plan makes no tensors", "plan"};
  std::vector<io::tensor_plan> tensors;
  for (const merge_step& step : plan.steps) {
    FLYWHEEL_TRY(const tensor_merge work, tensor_merge::create(plan, step, ctx));
    const auto rows = static_cast<std::uint64_t>(step.dims.rows());
    tensors.push_back(
        {step.name, step.type, step.dims,
         work.copied() != nullptr ? work.copied()->tensor->bytes : rows * row_bytes(step.type, step.dims.cols())});
  }
  return tensors;
}

merge_room room_for(const merge_plan& plan, unsigned workers) {
  merge_room room;
  for (const merge_step& step : plan.steps) room.add(plan, step, workers);
  return room;
}
std::vector<merge_scratch> scratch_for(const merge_plan& plan, const context& ctx) {
  const unsigned workers = ctx.executor().concurrency();
  return room_for(plan, workers).scratch(workers);
}

/// The same control, whose progress is called not more than 20 times a second, and at the end; copies keep one
/// count of time.
control paced(const control& from) {
  control made = from;
  if (from.progress)
    made.progress = [to = from.progress, next = std::make_shared<std::chrono::steady_clock::time_point>()](
                        std::uint64_t done, std::uint64_t total, std::string_view what) {
      const auto now = std::chrono::steady_clock::now();
      if (now < *next && done != total) return;
      *next = now + std::chrono::milliseconds(50);
      to(done, total, what);
    };
  return made;
}

/// Calls make(step index, tensor_merge) for all steps, and sums up. Of `total` bytes, `done()` are made.
template <class Done, class Make>
result<merge_report> run_plan(const merge_plan& plan, const context& ctx, const control& control,
                              std::span<merge_scratch> scratch, std::uint64_t total, Done done, Make make) {
  const auto begin = std::chrono::steady_clock::now();
  merge_report report;
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    FLYWHEEL_TRY(tensor_merge work, tensor_merge::create(plan, plan.steps[i], ctx));
    const auto between = [&]() -> result<void> {
      if (control.stopped()) return error{errc::cancelled, "merging was cancelled", plan.steps[i].name};
      if (control.progress) control.progress(done(), total, plan.steps[i].name);
      return {};
    };
    if (work.copied() == nullptr) FLYWHEEL_CHECK(work.look(scratch, between));
    FLYWHEEL_CHECK(make(i, work));
    work.release();
    ++report.tensors;
    report.copied += work.copied() != nullptr ? 1 : 0;
    report.bytes_read += work.bytes_read();
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

}  // namespace

std::uint64_t merge_plan::peak_memory(unsigned workers) const {
  workers = std::max(1U, workers);
  const merge_room room = room_for(*this, workers);
  // One piece is made, one is written.
  const auto piece = std::max<std::uint64_t>(room.piece, detail::tensor_pipeline::piece_bytes);
  return room.bytes(workers) + 2 * piece + fixed + per_tensor * steps.size();
}

result<merge_report> merge_models(const merge_plan& plan, const std::filesystem::path& out,
                                  const merge_options& options) {
  return detail::guarded([&]() -> result<merge_report> {
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    FLYWHEEL_TRY(std::vector<io::tensor_plan> tensors, tensors_of(plan, ctx));
    for (const io::archive& model : plan.models) FLYWHEEL_CHECK(detail::check_apart(model, out, false));
    std::uint64_t total = 0;
    for (const io::tensor_plan& tensor : tensors) total += tensor.bytes;
    const control how = paced(options.control);
    FLYWHEEL_TRY(detail::tensor_pipeline pipeline,
                 detail::tensor_pipeline::create(std::move(tensors), out, plan.metadata, ctx, how));
    std::vector<merge_scratch> scratch = scratch_for(plan, ctx);
    const auto done = [&] { return pipeline.bytes(); };
    FLYWHEEL_TRY(merge_report report,
                 run_plan(plan, ctx, how, scratch, total, done, [&](std::size_t i, tensor_merge& work) {
                   if (const tensor_merge::source* from = work.copied())
                     return pipeline.copy(i, *from->model, *from->tensor);
                   return pipeline.make(
                       i, work.rows_at_once(), row_bytes(plan.steps[i].type, plan.steps[i].dims.cols()),
                       [&](std::int64_t first, std::int64_t count, unsigned worker, std::span<std::byte> stored) {
                         return work.rows(first, count, scratch[worker], stored);
                       });
                 }));
    if (options.amend) {
      FLYWHEEL_TRY(const auto texts, options.amend());
      FLYWHEEL_CHECK(pipeline.amend(texts));
    }
    FLYWHEEL_CHECK(pipeline.finish());
    report.bytes = pipeline.bytes();
    return report;
  });
}

result<io::archive> merge_in_memory(const merge_plan& plan, const merge_options& options) {
  return detail::guarded([&]() -> result<io::archive> {
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    FLYWHEEL_TRY(const std::vector<io::tensor_plan> tensors, tensors_of(plan, ctx));
    io::archive_content made;
    made.metadata = plan.metadata;
    std::uint64_t size = 0, total = 0;
    for (const io::tensor_plan& planned : tensors) {
      total += planned.bytes;
      io::tensor_info tensor;
      tensor.name = planned.name;
      tensor.type = planned.type;
      tensor.dims = planned.dims;
      tensor.offset = size;
      tensor.bytes = planned.bytes;
      size += (tensor.bytes + buffer::alignment - 1) / buffer::alignment * buffer::alignment;
      made.tensors.push_back(std::move(tensor));
    }
    FLYWHEEL_TRY(buffer memory, buffer::allocate(static_cast<std::size_t>(size), ctx.memory()));
    std::vector<merge_scratch> scratch = scratch_for(plan, ctx);
    std::uint64_t done = 0;
    const control how = paced(options.control);
    const auto make = [&](std::size_t i, tensor_merge& work) -> result<void> {
      const io::tensor_info& tensor = made.tensors[i];
      const std::span<std::byte> to = memory.mutable_bytes().subspan(static_cast<std::size_t>(tensor.offset),
                                                                     static_cast<std::size_t>(tensor.bytes));
      if (how.stopped()) return error{errc::cancelled, "merging was cancelled", tensor.name};
      if (const tensor_merge::source* from = work.copied()) {
        FLYWHEEL_CHECK(from->model->read(*from->tensor, 0, to));
      } else {
        const std::int64_t rows = tensor.dims.rows(), each = work.rows_at_once();
        const std::size_t row = row_bytes(tensor.type, tensor.dims.cols());
        const auto slices = static_cast<std::size_t>((rows + each - 1) / each);
        FLYWHEEL_CHECK(detail::run_tasks(ctx.executor(), static_cast<unsigned>(std::min(scratch.size(), slices)),
                                         slices, [&](std::size_t slice, unsigned worker) -> result<void> {
                                           if (options.control.stopped())
                                             return error{errc::cancelled, "merging was cancelled", tensor.name};
                                           const std::int64_t first = static_cast<std::int64_t>(slice) * each,
                                                              count = std::min(each, rows - first);
                                           return work.rows(first, count, scratch[worker],
                                                            to.subspan(static_cast<std::size_t>(first) * row,
                                                                       static_cast<std::size_t>(count) * row));
                                         }));
      }
      done += tensor.bytes;
      if (how.progress) how.progress(done, total, tensor.name);
      return {};
    };
    FLYWHEEL_TRY([[maybe_unused]] const merge_report report,
                 run_plan(
                     plan, ctx, how, scratch, total, [&] { return done; }, make));
    made.sources.push_back(io::detail::make_source(std::move(memory)));
    made.file_bytes = size;
    return io::archive::assemble(std::move(made));
  });
}

}  // namespace flywheel::inline v0::adapt
