// Adapters put into weights.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "flywheel/quant/quantize.hpp"
#include "src/adapt/changed_tensor.hpp"
#include "src/core/run_tasks.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/model/tensor_pipeline.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using changes_by_tensor = std::map<std::string, std::vector<tensor_change>, std::less<>>;

/// By the tensor of the result.
result<changes_by_tensor> collect_changes(const io::archive& base, std::span<const scaled_adapter> adapters) {
  changes_by_tensor all;
  for (const scaled_adapter& use : adapters) {
    if (!std::isfinite(use.scale))
      return error{errc::invalid_argument, "the scale must be a finite number", use.adapter.path().string()};
    FLYWHEEL_TRY(std::vector<adapter_change> changes, adapter_changes(use.adapter, base));
    for (adapter_change& change : changes) {
      if (use.scale == 0) continue;
      std::string name = change.head ? std::string(detail::output_head) : change.weight;
      all[std::move(name)].push_back({use.adapter, std::move(change), use.scale});
    }
  }
  return all;
}

/// Whether tokens become logits by the embedding matrix.
bool has_tied_head(const io::archive& base) {
  const auto architecture = base.metadata().string("general.architecture");
  const auto causal = base.metadata().boolean(std::string(architecture ? *architecture : "") + ".attention.causal");
  return base.find(detail::output_head) == nullptr && base.find(detail::token_embeddings) != nullptr &&
         (!causal || *causal);
}

}  // namespace

result<io::archive> apply_adapters(const io::archive& base, std::span<const scaled_adapter> adapters) {
  return detail::guarded([&]() -> result<io::archive> {
    FLYWHEEL_TRY(changes_by_tensor changes, collect_changes(base, adapters));
    io::archive_content made;
    made.metadata = base.metadata();
    made.sources.assign(base.sources().begin(), base.sources().end());
    made.path = base.path();
    made.file_bytes = base.file_bytes();
    made.files = base.parts();
    const auto computed = std::make_shared<io::computed_source>();
    const auto part = static_cast<std::uint32_t>(made.sources.size());
    const auto add = [&](std::string name, const io::tensor_info& from) -> result<void> {
      const auto found = changes.find(name);
      io::tensor_info to = from;
      to.name = std::move(name);
      if (found != changes.end()) {
        if (!formats::find_decoder(from.type))
          return error{errc::unsupported, "no decoder for type " + std::string(to_string(from.type)), from.name};
        const std::size_t row = row_bytes(dtype::f32, from.dims.cols());
        to.type = dtype::f32;
        to.part = part;
        to.bytes = static_cast<std::uint64_t>(from.dims.rows()) * row;
        to.offset = computed->add(make_changed_tensor(base, from, std::move(found->second)), from.dims.rows(), row);
      }
      made.tensors.push_back(std::move(to));
      return {};
    };
    for (const io::tensor_info& tensor : base.tensors()) FLYWHEEL_CHECK(add(tensor.name, tensor));
    if (has_tied_head(base) && (changes.contains(detail::output_head) || changes.contains(detail::token_embeddings)))
      FLYWHEEL_CHECK(add(std::string(detail::output_head), *base.find(detail::token_embeddings)));
    made.sources.push_back(computed);
    return io::archive::assemble(std::move(made));
  });
}

result<merged_adapters> merge_adapters(const io::archive& base, std::span<const scaled_adapter> adapters,
                                       const std::filesystem::path& out, const merge_adapters_options& options) {
  return detail::guarded([&]() -> result<merged_adapters> {
    if (options.type && !quant::can_quantize(*options.type) && !formats::find_encoder(*options.type))
      return error{errc::invalid_argument, "weights cannot be encoded as " + std::string(to_string(*options.type)),
                   "type"};
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    FLYWHEEL_TRY(const io::archive changed, apply_adapters(base, adapters));
    for (const scaled_adapter& use : adapters) FLYWHEEL_CHECK(detail::check_apart(use.adapter, out, false));
    merged_adapters done;
    std::vector<dtype> types;
    std::vector<bool> is_changed;
    for (const io::tensor_info& tensor : changed.tensors()) {
      const io::tensor_info* was = base.find(tensor.name);
      if (was == nullptr) was = base.find(detail::token_embeddings);
      is_changed.push_back(tensor.part == base.sources().size());
      types.push_back(is_changed.back() && tensor.dims.rank() > 1 ? options.type.value_or(was->type) : was->type);
      if (is_changed.back() && tensor.dims.cols() % info(types.back())->block_elements != 0) types.back() = dtype::f16;
      done.changed += is_changed.back() ? 1 : 0;
    }
    io::metadata meta = changed.metadata();
    if (options.lineage) add_lineage(meta, *options.lineage);
    FLYWHEEL_TRY(auto pipeline, detail::tensor_pipeline::create(changed, out, std::move(meta), types, std::nullopt, ctx,
                                                                options.control));
    for (std::size_t i = 0; i < types.size(); ++i) {
      const io::tensor_info& tensor = changed.tensors()[i];
      const std::int64_t rows = tensor.dims.rows(), cols = tensor.dims.cols();
      if (!is_changed[i] || types[i] == dtype::f32) {
        FLYWHEEL_CHECK(pipeline.copy(i));
      } else if (types[i] == dtype::f16 || types[i] == dtype::bf16) {
        FLYWHEEL_CHECK(pipeline.encode(i, [&](std::span<const float> part, std::int64_t, std::span<std::byte> stored) {
          return detail::encode_plainly(types[i], cols, part, stored);
        }));
      } else {
        std::vector<float> values(static_cast<std::size_t>(tensor.dims.elements()));
        constexpr std::int64_t rows_of_task = 256;
        FLYWHEEL_CHECK(detail::run_tasks(ctx.executor(), ctx.executor().concurrency(),
                                         static_cast<std::size_t>((rows + rows_of_task - 1) / rows_of_task),
                                         [&](std::size_t task, unsigned) -> result<void> {
                                           const std::int64_t first = static_cast<std::int64_t>(task) * rows_of_task;
                                           return read_rows(changed, tensor, first,
                                                            std::min(rows_of_task, rows - first),
                                                            values.data() + first * cols);
                                         }));
        changed.release(tensor);
        const quant::recipe how{types[i], options.search ? quant::rounding::search : quant::rounding::nearest};
        std::vector<std::byte> stored(static_cast<std::size_t>(rows) * row_bytes(types[i], cols));
        FLYWHEEL_CHECK(quant::quantize_rows(values, cols, 0, how, stored, ctx, {{}, options.control.stop}));
        FLYWHEEL_CHECK(pipeline.put(i, std::move(stored)));
      }
    }
    FLYWHEEL_CHECK(pipeline.finish());
    done.tensors = types.size();
    done.bytes = pipeline.bytes();
    return done;
  });
}

}  // namespace flywheel::inline v0::adapt
