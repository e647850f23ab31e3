#include "src/adapt/merge/tensor_merge.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/quantize.hpp"
#include "kernels/registry.hpp"
#include "src/core/run_tasks.hpp"

namespace flywheel::inline v0::adapt {
namespace {

/// Slices between two looks at the stop token, per worker: some milliseconds.
constexpr std::size_t slices_per_round = 16;
/// Inputs of a tensor up to this size stay mapped from pass to pass.
constexpr std::uint64_t kept_mapped = std::uint64_t{256} << 20;

error misfit(const merge_step& step, std::string message) {
  return {errc::invalid_argument, std::move(message), "tensor '" + step.name + "'"};
}

/// The first element whose magnitude is not below `limit` (NaN is not); n when there is none.
std::size_t first_beyond(std::span<const float> values, float limit) noexcept {
  const auto bits = std::bit_cast<std::int32_t>(limit);
  const auto beyond = [bits](float v) { return (std::bit_cast<std::int32_t>(v) & 0x7fffffff) >= bits; };
  constexpr std::size_t block = 1024;
  for (std::size_t first = 0; first < values.size(); first += block) {
    const std::size_t n = std::min(block, values.size() - first);
    std::int32_t found = 0;  // no branch, so that the loop is one of vectors
    for (std::size_t i = 0; i < n; ++i) found |= beyond(values[first + i]) ? 1 : 0;
    if (found == 0) continue;
    return static_cast<std::size_t>(
        std::find_if(values.begin() + static_cast<std::ptrdiff_t>(first), values.end(), beyond) - values.begin());
  }
  return values.size();
}

merge::task task_of(const merge_plan& plan, const merge_step& step) {
  merge::task made;
  made.name = step.name;
  made.elements = step.dims.elements();
  made.cols = step.dims.cols();
  made.models = step.inputs.size();
  made.base = step.base.has_value();
  made.seed = merge::tensor_seed(plan.seed, step.name);
  made.parameters = step.parameters;
  return made;
}

/// Errors: invalid_argument, when the step is not what its method takes.
result<void> check_method(const merge_plan& plan, const merge_step& step) {
  const merge::method& how = *step.how;
  const std::string name(how.name);
  if (step.inputs.size() < how.min_models || step.inputs.size() > how.max_models)
    return misfit(step, name + " does not merge " + std::to_string(step.inputs.size()) + " models");
  if (how.base == merge::base_use::required && !step.base) return misfit(step, name + " needs a base model");
  if (how.base == merge::base_use::none && step.base) return misfit(step, name + " takes no base model");
  std::size_t wanted = 0;
  for (const merge::parameter_info& p : how.parameters) wanted += p.per_model ? step.inputs.size() : 1;
  if (step.parameters.size() != wanted)
    return misfit(step, name + " takes " + std::to_string(wanted) + " parameters here, not " +
                            std::to_string(step.parameters.size()));
  for (const merge::parameter_info& p : how.parameters)
    for (const double value : merge::values_of(how.parameters, task_of(plan, step), p.name))
      if (!(value >= p.least && value <= p.most))
        return misfit(step, std::string(p.name) + " is " + std::to_string(value) + ", but " + name + " takes " +
                                std::to_string(p.least) + " to " + std::to_string(p.most));
  if (how.refuses != nullptr)
    if (const std::string_view why = how.refuses(task_of(plan, step)); !why.empty())
      return misfit(step, name + ": " + std::string(why));
  return {};
}

}  // namespace

result<void> tensor_merge::open(const merge_plan& plan, const merge_step::input& input) {
  if (input.model >= plan.models.size()) return misfit(*step_, "the plan has no such model");
  const io::archive& model = plan.models[input.model];
  const io::tensor_info* const tensor = model.find(input.tensor);
  if (tensor == nullptr)
    return error{errc::not_found, "there is no tensor '" + input.tensor + "', which '" + step_->name + "' comes from",
                 model.path().string()};
  if (!(tensor->dims == step_->dims))
    return error{errc::invalid_argument,
                 "tensor '" + input.tensor + "' is " + tensor->dims.to_string() + ", but '" + step_->name + "' is " +
                     step_->dims.to_string(),
                 model.path().string()};
  sources_.push_back({&model, tensor});
  return {};
}

result<tensor_merge> tensor_merge::create(const merge_plan& plan, const merge_step& step, const context& ctx) {
  tensor_merge made(step, ctx);
  for (const merge_step::input& input : step.inputs) FLYWHEEL_CHECK(made.open(plan, input));
  if (step.base) FLYWHEEL_CHECK(made.open(plan, *step.base));
  if (made.sources_.empty()) return misfit(step, "nothing to make it from");
  if (step.how != nullptr)
    FLYWHEEL_CHECK(check_method(plan, step));
  else if (made.sources_.size() != 1)
    return misfit(step, "a copy has one source");
  const bool unchanged = step.how == nullptr || (step.how == find_merge_method("passthrough") &&
                                                 !step.parameters.empty() && step.parameters.front() == 1);
  if (unchanged && made.sources_.front().tensor->type == step.type) {
    made.copied_ = true;
    return made;
  }
  if (step.dims.elements() == 0) return misfit(step, "it has no elements");
  const dtype_info* const type = info(step.type);
  if (type == nullptr || (!quant::can_quantize(step.type) && step.type != dtype::f32))
    return error{errc::unsupported, "weights cannot be encoded as " + std::string(to_string(step.type)),
                 "tensor '" + step.name + "'"};
  if (step.dims.cols() % type->block_elements != 0)
    return misfit(step, "rows of " + std::to_string(step.dims.cols()) + " are no whole blocks of " +
                            std::string(to_string(step.type)));
  for (const source& s : made.sources_) {
    FLYWHEEL_TRY(detail::row_reader reader, detail::row_reader::create(*s.model, *s.tensor, ctx));
    made.readers_.push_back(std::move(reader));
  }
  if (step.how != nullptr) made.method_ = step.how->start(task_of(plan, step));
  if (step.type != dtype::f32 && step.type != dtype::f16) {
    context_options alone;  // a worker rounds its own rows
    alone.executor = serial_executor();
    alone.isa = ctx.isa().selected;
    FLYWHEEL_TRY(made.serial_, context::create(std::move(alone)));
  }
  return made;
}

std::uint64_t tensor_merge::bytes_of_inputs() const noexcept {
  std::uint64_t bytes = 0;
  for (const source& s : sources_) bytes += s.tensor->bytes;
  return bytes;
}

std::span<const double> tensor_merge::before(std::int64_t slice) const noexcept {
  return std::span(before_).subspan(static_cast<std::size_t>(slice) * width_, width_);
}

void tensor_merge::release() const noexcept {
  for (const source& s : sources_) s.model->release(*s.tensor);
}

void tensor_merge::release_rows(std::int64_t first, std::int64_t count) const noexcept {
  for (const source& s : sources_) {
    const io::byte_source& from = *s.model->sources()[s.tensor->part];
    if (from.mapped().empty()) continue;  // what is computed on reading may be kept for the next rows
    const std::uint64_t row = row_bytes(s.tensor->type, step_->dims.cols());
    from.release(s.tensor->offset + static_cast<std::uint64_t>(first) * row, static_cast<std::uint64_t>(count) * row);
  }
}

result<merge::slice> tensor_merge::read(std::int64_t first, std::int64_t count, merge_scratch& scratch) const {
  if (scratch.inputs.size() < readers_.size()) scratch.inputs.resize(readers_.size());
  scratch.models.clear();
  const std::int64_t cols = step_->dims.cols();
  for (std::size_t i = 0; i < readers_.size(); ++i) {
    FLYWHEEL_TRY(const std::span<const float> values, readers_[i].read(first, count, scratch.inputs[i]));
    if (!checked_)
      if (const std::size_t at = first_beyond(values, std::numeric_limits<float>::infinity()); at < values.size())
        return error{errc::invalid_argument,
                     "a weight is " + std::string(std::isnan(values[at]) ? "not a number" : "infinite") + ": element " +
                         std::to_string(static_cast<std::size_t>(first * cols) + at) + " of tensor '" +
                         sources_[i].tensor->name + "'",
                     sources_[i].model->path().string()};
    scratch.models.push_back(values.data());
  }
  merge::slice made{scratch.models, nullptr, first * cols, count * cols, cols};
  if (step_->base) {
    made.base = made.models.back();
    made.models = made.models.first(made.models.size() - 1);
  }
  return made;
}

result<void> tensor_merge::look(std::span<merge_scratch> scratch, function_ref<result<void>()> between) {
  if (method_ == nullptr) return {};
  for (merge::pass p = method_->next_pass(); p.sums + p.counts > 0; p = method_->next_pass()) {
    FLYWHEEL_CHECK(look_once(p, scratch, between));
    checked_ = true;
  }
  return {};
}

result<void> tensor_merge::look_once(const merge::pass& wanted, std::span<merge_scratch> scratch,
                                     function_ref<result<void>()> between) {
  const std::int64_t rows = step_->dims.rows(), per_slice = rows_at_once();
  const auto slices = static_cast<std::size_t>((rows + per_slice - 1) / per_slice);
  const std::size_t per_round = slices_per_round * scratch.size();
  const bool release = bytes_of_inputs() > kept_mapped;
  std::vector<double> sums(wanted.sums), parts(std::min(per_round, slices) * wanted.sums), next;
  for (merge_scratch& own : scratch) own.counts.assign(wanted.counts, 0);
  if (wanted.ordered) next.reserve(slices * wanted.sums);
  for (std::size_t begin = 0; begin < slices; begin += per_round) {
    FLYWHEEL_CHECK(between());
    const std::size_t n = std::min(per_round, slices - begin);
    std::fill(parts.begin(), parts.end(), 0.0);
    const auto workers = static_cast<unsigned>(std::min(scratch.size(), n));
    FLYWHEEL_CHECK(
        detail::run_tasks(ctx_.executor(), workers, n, [&](std::size_t index, unsigned worker) -> result<void> {
          const auto slice = static_cast<std::int64_t>(begin + index);
          const std::int64_t first = slice * per_slice, count = std::min(per_slice, rows - first);
          FLYWHEEL_TRY(const merge::slice all, read(first, count, scratch[worker]));
          method_->look(all, before(slice),
                        {std::span(parts).subspan(index * wanted.sums, wanted.sums), scratch[worker].counts});
          if (release) release_rows(first, count);
          return {};
        }));
    for (std::size_t i = 0; i < n; ++i) {
      if (wanted.ordered) next.insert(next.end(), sums.begin(), sums.end());
      for (std::size_t k = 0; k < wanted.sums; ++k) sums[k] += parts[i * wanted.sums + k];
    }
  }
  std::vector<std::uint64_t>& counts = scratch.front().counts;
  for (const merge_scratch& own : scratch.subspan(1))
    for (std::size_t k = 0; k < wanted.counts; ++k) counts[k] += own.counts[k];
  method_->finish_pass({sums, counts});
  if (wanted.ordered) before_ = std::move(next), width_ = wanted.sums;
  ++passes_;
  return {};
}

result<void> tensor_merge::encode(std::span<const float> rows, std::int64_t first, std::span<std::byte> stored) const {
  const std::int64_t cols = step_->dims.cols();
  const auto refused = [&](std::size_t at) {
    return misfit(*step_, "merged, element " + std::to_string(static_cast<std::size_t>(first * cols) + at) + " is " +
                              std::to_string(rows[at]) + ", which " + std::string(to_string(step_->type)) +
                              " cannot hold");
  };
  // Half of the last bit above the largest number: what is there rounds to infinity.
  const float limit = step_->type == dtype::f16    ? 65520.0F
                      : step_->type == dtype::bf16 ? std::bit_cast<float>(0x7f7f8000U)
                                                   : std::numeric_limits<float>::infinity();
  if (const std::size_t at = first_beyond(rows, limit); at < rows.size()) return refused(at);
  if (step_->type == dtype::f32) {
    std::memcpy(stored.data(), rows.data(), stored.size());
    return {};
  }
  if (step_->type == dtype::f16) {
    kernels::select(kernels::find_cluster(ctx_.isa().selected))
        .f32_to_f16(rows.data(), static_cast<std::int64_t>(rows.size()),
                    reinterpret_cast<std::uint16_t*>(stored.data()));
    return {};
  }
  quant::recipe how;
  how.type = step_->type;
  auto done = quant::quantize_rows(rows, cols, first, how, stored, serial_);
  if (!done) return error{done.error().code, done.error().message, "tensor '" + step_->name + "'"};
  return {};
}

result<void> tensor_merge::rows(std::int64_t first, std::int64_t count, merge_scratch& scratch,
                                std::span<std::byte> stored) const {
  const std::int64_t cols = step_->dims.cols();
  FLYWHEEL_TRY(const merge::slice all, read(first, count, scratch));
  std::span<const float> made(all.models.front(), static_cast<std::size_t>(all.count));
  if (method_ != nullptr) {
    scratch.merged.resize(static_cast<std::size_t>(count * cols));
    method_->combine(all, before(first / rows_at_once()), scratch.merged.data());
    made = scratch.merged;
  }
  FLYWHEEL_CHECK(encode(made, first, stored));
  release_rows(first, count);
  return {};
}

void merge_room::add(const merge_plan& plan, const merge_step& step, unsigned workers) {
  const std::int64_t cols = step.dims.cols(), rows = step.dims.rows();
  if (cols <= 0 || rows <= 0) return;
  const std::int64_t per_slice = std::min(merge::slice_rows(cols), rows);
  const auto elements = static_cast<std::size_t>(per_slice * cols);
  const std::size_t row = row_bytes(step.type, cols);
  piece = std::max<std::uint64_t>(piece, row);
  std::vector<merge_step::input> all = step.inputs;
  if (step.base) all.push_back(*step.base);
  const bool computed = step.how != nullptr || all.size() != 1;
  for (std::size_t i = 0; i < all.size() && all[i].model < plan.models.size(); ++i) {
    const io::archive& model = plan.models[all[i].model];
    const io::tensor_info* const tensor = model.find(all[i].tensor);
    if (tensor == nullptr) continue;
    if (!computed && tensor->type == step.type) return;  // copied
    if (values.size() <= i) values.resize(i + 1), stored.resize(i + 1);
    values[i] = std::max(values[i], elements);
    if (model.sources()[tensor->part]->mapped().empty())
      stored[i] = std::max(stored[i], static_cast<std::size_t>(per_slice) * row_bytes(tensor->type, cols));
  }
  // A context of its own, and an encoder that searches.
  if (step.type != dtype::f32 && step.type != dtype::f16) encoder = std::uint64_t{256} << 10;
  if (step.how == nullptr || !check_method(plan, step)) return;
  merged = std::max(merged, elements);
  const merge::pass most = step.how->start(task_of(plan, step))->largest_pass();
  counts = std::max(counts, most.counts);
  // Deltas of a tile of rows, what was elected of them, and ranks within a row.
  const auto tile = static_cast<std::uint64_t>(std::max<std::int64_t>(2048, cols));
  const std::uint64_t n = step.inputs.size();
  method =
      std::max(method, tile * sizeof(float) * (n + 6) + static_cast<std::uint64_t>(cols) * sizeof(double) * (n + 2));
  const auto slices = static_cast<std::uint64_t>((rows + per_slice - 1) / per_slice);
  const std::uint64_t at_once = std::min<std::uint64_t>(slices, std::uint64_t{slices_per_round} * workers);
  const std::uint64_t sums = most.sums * (at_once + 2 + (most.ordered ? slices : 0));
  // Columns have coefficients of their own, not more than sums.
  shared = std::max(shared, (sums + most.sums) * sizeof(double));
}

std::uint64_t merge_room::bytes(unsigned workers) const noexcept {
  std::uint64_t of_worker = method + encoder + merged * sizeof(float) + counts * sizeof(std::uint64_t);
  for (const std::size_t n : values) of_worker += n * sizeof(float) + 2 * sizeof(detail::row_reader::scratch);
  for (const std::size_t n : stored) of_worker += n;
  return of_worker * workers + shared;
}

std::vector<merge_scratch> merge_room::scratch(unsigned workers) const {
  std::vector<merge_scratch> made(workers);
  for (merge_scratch& one : made) {
    one.inputs.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      one.inputs[i].values.reserve(values[i]);
      one.inputs[i].stored.reserve(stored[i]);
    }
    one.models.reserve(values.size());
    one.merged.reserve(merged);
    one.counts.reserve(counts);
  }
  return made;
}

}  // namespace flywheel::inline v0::adapt
