// An adapter taken out of a fine-tuned model.
#include <algorithm>
#include <cmath>
#include <utility>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/adapt/adapter_builder.hpp"
#include "src/adapt/changed_tensor.hpp"
#include "src/adapt/low_rank.hpp"
#include "src/core/run_tasks.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/text/regex.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using io::detail::in_quotes;

result<void> check_extract_options(const extract_options& o) {
  const auto wrong = [](const char* what, const char* where) { return error{errc::invalid_argument, what, where}; };
  if (o.rank < 1) return wrong("the rank must be at least 1", "rank");
  if (o.energy && !(*o.energy > 0 && *o.energy <= 1))
    return wrong("the share must be more than 0, at most 1", "energy");
  if (o.iterations < 0 || o.iterations > 100) return wrong("there must be 0 to 100", "iterations");
  if (o.type != dtype::f32 && o.type != dtype::f16 && o.type != dtype::bf16)
    return wrong("factors are f32, f16 or bf16", "type");
  return {};
}

/// tuned - base of one tensor, in f32; empty when they are equal.
class difference {
 public:
  difference(const io::archive& base, const io::archive& tuned, const context& ctx, const control& control)
      : base_(base), tuned_(tuned), ctx_(ctx), control_(control) {}

  result<std::vector<float>> of(const io::tensor_info& to, const io::tensor_info& now) const {
    const std::int64_t rows = to.dims.rows(), cols = std::max<std::int64_t>(to.dims.cols(), 1);
    const std::int64_t each = std::max<std::int64_t>(1, 65536 / cols);
    std::vector<float> d(static_cast<std::size_t>(to.dims.elements()));
    const auto tasks = static_cast<std::size_t>((rows + each - 1) / each);
    std::vector<char> differs(tasks);
    FLYWHEEL_CHECK(detail::run_tasks(
        ctx_.executor(), ctx_.executor().concurrency(), tasks, [&](std::size_t task, unsigned) -> result<void> {
          if (control_.stopped()) return error{errc::cancelled, "extracting was cancelled", to.name};
          const std::int64_t first = static_cast<std::int64_t>(task) * each, n = std::min(each, rows - first);
          std::vector<float> was(static_cast<std::size_t>(n * cols));
          float* const out = d.data() + first * cols;
          FLYWHEEL_CHECK(read_rows(base_, to, first, n, was.data()));
          FLYWHEEL_CHECK(read_rows(tuned_, now, first, n, out));
          for (std::size_t i = 0; i < was.size(); ++i) {
            out[i] -= was[i];
            if (!std::isfinite(out[i]))
              return error{
                  errc::invalid_argument,
                  "a weight is not a finite number, or the difference from " + base_.path().string() + " is none",
                  tuned_.path().string() + ": tensor " + in_quotes(to.name)};
            differs[task] |= out[i] != 0 ? 1 : 0;
          }
          return {};
        }));
    base_.release(to);
    tuned_.release(now);
    if (std::ranges::find(differs, 1) == differs.end()) d.clear();
    return d;
  }

 private:
  const io::archive& base_;
  const io::archive& tuned_;
  const context& ctx_;
  const control& control_;
};

}  // namespace

result<extracted_adapter> extract_adapter(const io::archive& base, const io::archive& tuned,
                                          const extract_options& options) {
  return detail::guarded([&]() -> result<extracted_adapter> {
    FLYWHEEL_CHECK(check_extract_options(options));
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    const auto kind = [](const io::archive& file) {
      const auto text = file.metadata().string("general.architecture");
      return text ? std::string(*text) : std::string();
    };
    if (kind(base) != kind(tuned))
      return error{errc::invalid_argument,
                   "the architecture is " + in_quotes(kind(tuned)) + ", but that of " + base.path().string() + " is " +
                       in_quotes(kind(base)),
                   tuned.path().string()};
    std::optional<text::regex> pattern;
    if (!options.pattern.empty()) {
      auto compiled = text::regex::compile(options.pattern);
      if (!compiled) return error{errc::invalid_argument, compiled.error().message, "pattern"};
      pattern = *std::move(compiled);
    }
    text::regex_matcher matcher;
    const auto name = tuned.metadata().string("general.name");
    adapter_builder builder(base, name ? std::string(*name) : tuned.path().stem().string(), options.type);
    const difference subtract(base, tuned, ctx, options.control);
    std::vector<std::string> left_out;
    bool any = false;
    std::uint64_t done = 0, total = 0;
    for (const io::tensor_info& to : base.tensors()) total += static_cast<std::uint64_t>(to.dims.elements());
    for (const io::tensor_info& to : base.tensors()) {
      if (options.control.stopped()) return error{errc::cancelled, "extracting was cancelled", to.name};
      if (options.control.progress) options.control.progress(done, total, to.name);
      done += static_cast<std::uint64_t>(to.dims.elements());
      const io::tensor_info* now = tuned.find(to.name);
      if (now == nullptr || now->dims != to.dims)
        return error{errc::invalid_argument,
                     now == nullptr ? "there is no such tensor, but " + base.path().string() + " has it"
                                    : "its shape is " + now->dims.to_string() + ", but in " + base.path().string() +
                                          " it is " + to.dims.to_string(),
                     tuned.path().string() + ": tensor " + in_quotes(to.name)};
      for (const auto& [file, tensor] : {std::pair{&base, &to}, std::pair{&tuned, now}})
        if (!formats::find_decoder(tensor->type))
          return error{errc::unsupported, "no decoder for type " + std::string(to_string(tensor->type)),
                       file->path().string() + ": tensor " + in_quotes(tensor->name)};
      FLYWHEEL_TRY(const std::vector<float> d, subtract.of(to, *now));
      if (d.empty()) continue;
      const bool embedding = to.name == detail::token_embeddings;
      bool taken = to.dims.rank() == 2 && (options.embeddings || (!embedding && to.name != detail::output_head));
      if (taken && pattern) {
        FLYWHEEL_TRY(const auto found, matcher.search(*pattern, to.name, 0));
        taken = found.matched;
      }
      if (!taken) {
        left_out.push_back(to.name);
        continue;
      }
      const low_rank_options how{options.rank, options.energy, options.iterations, seed_of(options.seed, to.name),
                                 options.type};
      FLYWHEEL_TRY(const low_rank found, best_low_rank(d, to.dims[0], to.dims[1], how, ctx));
      any = true;
      builder.report(to.name, found.rank, found.squares, found.error_squares);
      FLYWHEEL_CHECK(builder.add(to.name, to.dims, embedding, found.rank, found.left, found.right));
      if (embedding && base.find(detail::output_head) == nullptr && tuned.find(detail::output_head) == nullptr)
        FLYWHEEL_CHECK(builder.add(std::string(detail::output_head), to.dims, false, found.rank, found.left,
                                   found.right));  // a tied head changes with it
    }
    for (const io::tensor_info& now : tuned.tensors())
      if (base.find(now.name) == nullptr) left_out.push_back(now.name);
    if (!any)
      return error{errc::invalid_argument, "no matrix that was asked for differs from " + base.path().string(),
                   tuned.path().string()};
    FLYWHEEL_TRY(extracted_adapter made, builder.finish());
    made.left_out = std::move(left_out);
    return made;
  });
}

}  // namespace flywheel::inline v0::adapt
