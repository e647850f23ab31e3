#include "flywheel/quant/quantize_model.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/detail/utf8.hpp"
#include "flywheel/quant/calibration.hpp"
#include "flywheel/quant/quantize.hpp"
#include "flywheel/quant/transform.hpp"
#include "flywheel/version.hpp"
#include "src/core/checksum.hpp"
#include "src/io/byte_source.hpp"
#include "src/io/safetensors.hpp"
#include "src/model/device_safetensors.hpp"
#include "src/model/tensor_pipeline.hpp"
#include "src/quant/edited_archive.hpp"
#include "src/quant/layerwise.hpp"
#include "src/quant/mixes.hpp"
#include "src/quant/tensor_rounder.hpp"
#include "src/quant/type_search.hpp"
#include "src/text/regex.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::pair<std::string_view, method> method_names[] = {{"rtn", method::nearest},
                                                                {"search", method::search},
                                                                {"greedy", method::greedy},
                                                                {"gptq", method::gptq},
                                                                {"awq", method::awq}};

bool is_quantized(dtype type) noexcept {
  const dtype_info* facts = info(type);
  return facts != nullptr && (facts->kind == dtype_kind::block || facts->kind == dtype_kind::row);
}

rounding rounding_of(method how) noexcept {
  return how == method::nearest ? rounding::nearest : how == method::greedy ? rounding::greedy : rounding::search;
}

/// What becomes of every tensor.
struct decision {
  std::vector<dtype> types;    ///< [tensors]
  std::vector<bool> fallback;  ///< [tensors]
  std::optional<std::uint32_t> file_type;
  bool sparing = false;  ///< Q2_K_S: Q2_K without importance is refused.
  std::optional<type_search_result> searched;
};

bool has_target(const quantize_options& o) noexcept { return o.target_bpw || o.target_bytes || o.max_kl; }

io::metadata metadata_of(const io::archive& from, const decision& made, const quantize_options& options) {
  io::metadata meta = from.metadata();
  meta.set("general.quantization_version", std::uint32_t{2});
  if (made.file_type)
    meta.set("general.file_type", *made.file_type);
  else
    meta.erase("general.file_type");
  for (const char* key : {"split.no", "split.count", "split.tensors.count"}) meta.erase(key);
  meta.set("flywheel.quantize.version", std::string(version));
  if (!options.type.empty()) meta.set("flywheel.quantize.type", options.type);
  if (options.target_bpw) meta.set("flywheel.quantize.target_bpw", *options.target_bpw);
  if (options.target_bytes) meta.set("flywheel.quantize.target_bytes", *options.target_bytes);
  if (options.max_kl) meta.set("flywheel.quantize.max_kl", *options.max_kl);
  meta.set("flywheel.quantize.method", std::string(to_string(options.method)));
  if (options.importance != nullptr) {
    const importance_matrix& m = *options.importance;
    if (!options.importance_file.empty()) meta.set("quantize.imatrix.file", options.importance_file);
    if (!m.datasets.empty()) meta.set("quantize.imatrix.dataset", m.datasets.front());
    meta.set("quantize.imatrix.entries_count", static_cast<std::uint32_t>(m.entries.size()));
    meta.set("quantize.imatrix.chunks_count", m.chunks);
  }
  return meta;
}

/// Overrides, compiled.
class override_list {
 public:
  static result<override_list> compile(std::span<const type_override> overrides) {
    override_list made;
    for (const type_override& one : overrides) {
      auto compiled = text::regex::compile(one.pattern);
      if (!compiled)
        return error{errc::invalid_argument,
                     "'" + one.pattern + "' is no regular expression: " + compiled.error().message, "overrides"};
      made.patterns_.emplace_back(*std::move(compiled), one.type);
    }
    return made;
  }
  [[nodiscard]] result<std::optional<dtype>> find(std::string_view name) const {
    text::regex_matcher matcher;
    for (const auto& [pattern, type] : patterns_) {
      FLYWHEEL_TRY(const auto found, matcher.search(pattern, name, 0));
      if (found.matched) return std::optional<dtype>(type);
    }
    return std::optional<dtype>();
  }

 private:
  std::vector<std::pair<text::regex, dtype>> patterns_;
};

result<decision> by_type(const io::archive& from, const quantize_options& options, const override_list& overrides) {
  const dtype_info* plain = find_dtype(options.type);
  const mix* named = find_mix(options.type);
  if (plain == nullptr && named == nullptr)
    return error{errc::invalid_argument, "'" + options.type + "' is no type and no mix of types", "type"};
  const bool pure = options.pure || named == nullptr;
  const dtype base = pure && plain != nullptr ? plain->type : named->base;
  if (pure) named = pure_mix(base);
  const model_facts facts = facts_of(from, options.importance != nullptr || !options.calibration.empty());
  decision made;
  if (named != nullptr) made.file_type = named->file_type, made.sparing = named->name == "Q2_K_S";
  for (const io::tensor_info& tensor : from.tensors()) {
    FLYWHEEL_TRY(const std::optional<dtype> wanted, overrides.find(tensor.name));
    dtype meant = tensor.type;
    if (may_quantize(tensor)) meant = wanted ? *wanted : pure ? base : type_in_mix(*named, facts, tensor);
    made.types.push_back(meant == tensor.type ? meant : fitting(meant, tensor.dims.cols()));
    made.fallback.push_back(made.types.back() != meant);
  }
  return made;
}

/// Windows of all texts, taken evenly from each.
result<std::vector<evaluate::window>> calibration_windows(const io::archive& from, const quantize_options& options) {
  // A choice of types runs the model on them some hundred times.
  constexpr std::int64_t fewest = 4, enough = 48;
  const std::int64_t most =
      options.calibration_windows == 0 ? enough : std::clamp(options.calibration_windows, fewest, enough);
  FLYWHEEL_TRY(const text::tokenizer vocabulary, text::tokenizer::from_metadata(from.metadata()));
  std::vector<evaluate::window> all;
  const std::size_t each = std::max<std::size_t>(1, static_cast<std::size_t>(most) / options.calibration.size());
  for (const calibration_text& one : options.calibration) {
    auto cut = evaluate::cut_windows(vocabulary, one.text, {.ctx = options.calibration_ctx});
    if (!cut) return error{cut.error().code, cut.error().message, one.name};
    const std::size_t n = std::min(each, cut->size());
    for (std::size_t i = 0; i < n; ++i) all.push_back(std::move((*cut)[i * cut->size() / n]));
  }
  return all;
}

/// The types that no target changes.
result<std::vector<std::optional<dtype>>> fixed_types(const io::archive& from, const override_list& overrides) {
  std::vector<std::optional<dtype>> types;
  for (const io::tensor_info& tensor : from.tensors()) {
    FLYWHEEL_TRY(const std::optional<dtype> wanted, overrides.find(tensor.name));
    if (!may_quantize(tensor))
      types.emplace_back(tensor.type);
    else
      types.push_back(wanted ? std::optional(fitting(*wanted, tensor.dims.cols())) : std::nullopt);
  }
  return types;
}

result<decision> by_target(const io::archive& from, const quantize_options& options, const override_list& overrides,
                           const context& ctx) {
  constexpr double unlimited = 0x1p60;  // bytes; larger targets ask for nothing more
  decision made;
  FLYWHEEL_TRY(const std::vector<std::optional<dtype>> types, fixed_types(from, overrides));
  double elements = 0;
  for (const io::tensor_info& tensor : from.tensors()) elements += static_cast<double>(tensor.dims.elements());
  type_search_options how;
  how.kl = options.max_kl;
  how.method = rounding_of(options.method);
  how.importance = options.importance;
  how.ctx = ctx;
  how.control = options.control;
  if (options.target_bpw)
    how.bytes = static_cast<std::uint64_t>(std::min(*options.target_bpw * elements / 8, unlimited));
  if (options.target_bytes) {
    constexpr std::uint64_t padding = 31;  // behind a tensor, at most
    const std::uint64_t header =
        io::gguf_header_bytes(metadata_of(from, made, options), from.tensors()) + padding * from.tensors().size();
    if (*options.target_bytes <= header)
      return error{errc::invalid_argument,
                   "names, vocabulary and other metadata alone take " + std::to_string(header) + " bytes", "target"};
    how.bytes = std::min(*options.target_bytes - header, static_cast<std::uint64_t>(unlimited));
  }
  FLYWHEEL_TRY(std::vector<evaluate::window> windows, calibration_windows(from, options));
  FLYWHEEL_TRY(made.searched, search_types(from, types, std::move(windows), how));
  made.types = made.searched->types;
  made.fallback.assign(made.types.size(), false);
  return made;
}

result<decision> decide(const io::archive& from, const quantize_options& options, const context& ctx) {
  FLYWHEEL_TRY(const override_list overrides, override_list::compile(options.overrides));
  return has_target(options) ? by_target(from, options, overrides, ctx) : by_type(from, options, overrides);
}

result<void> check_source(const io::archive& from, const std::filesystem::path& out, const quantize_options& options) {
  if (!from.metadata().contains("general.architecture"))
    return error{errc::unsupported, "this is no model: it has no metadata that says which", from.path().string()};
  FLYWHEEL_CHECK(flywheel::detail::check_apart(from, out, true));
  if (!options.allow_requantize)
    for (const io::tensor_info& tensor : from.tensors())
      if (may_quantize(tensor) && is_quantized(tensor.type))
        return error{errc::invalid_argument,
                     "tensor '" + tensor.name + "' is quantized already (" + std::string(to_string(tensor.type)) +
                         "), and rounding twice loses more: start from the original, or allow it",
                     "allow_requantize"};
  return {};
}

/// Every type can be encoded and stored, and those that need importance have it or will.
result<void> check_types(const io::archive& from, const std::filesystem::path& out, const std::vector<dtype>& types,
                         bool sparing, const quantize_options& options) {
  const bool safetensors = out.extension() == ".safetensors";
  for (std::size_t i = 0; i < types.size(); ++i) {
    const io::tensor_info& tensor = from.tensors()[i];
    const dtype type = types[i];
    if (safetensors && !flywheel::detail::is_device_format(type) && !io::detail::in_safetensors(type))
      return error{errc::invalid_argument,
                   "safetensors has no " + std::string(to_string(type)) + " for tensor '" + tensor.name +
                       "'; write a file whose name ends with .gguf",
                   "type"};
    if (type == tensor.type) continue;
    if (!can_quantize(type))
      return error{errc::invalid_argument, "weights cannot be encoded as " + std::string(to_string(type)), "type"};
    const tensor_kind kind = kind_of(tensor.name);
    if (kind == tensor_kind::token_embd || kind == tensor_kind::output) continue;  // some texts do not measure them
    if (options.importance == nullptr && !options.calibration.empty()) continue;   // it will be collected
    const bool wants = wants_importance(type) || (sparing && type == dtype::q2_k);
    if (wants && (options.importance == nullptr || options.importance->of(tensor.name).empty()))
      return error{errc::invalid_argument,
                   "tensor '" + tensor.name + "' as " + std::string(to_string(type)) + " needs an importance matrix" +
                       (options.importance != nullptr ? " with an entry of that name" : ""),
                   "importance"};
  }
  return {};
}

/// All that can be known to fail before the model is run, which may take hours.
result<void> check_request(const io::archive& from, const std::filesystem::path& out, const quantize_options& options) {
  const int asked = (options.type.empty() ? 0 : 1) + (options.target_bpw ? 1 : 0) + (options.target_bytes ? 1 : 0) +
                    (options.max_kl ? 1 : 0);
  if (asked != 1)
    return error{errc::invalid_argument, "give a type, or one target: bits per weight, a size, or a KL divergence",
                 asked == 0 ? "type" : "target"};
  for (const std::optional<double>& number : {options.target_bpw, options.max_kl})
    if (number && !(*number > 0 && std::isfinite(*number)))
      return error{errc::invalid_argument, "a target must be a positive number", "target"};
  for (const calibration_text& one : options.calibration)
    if (one.text.empty()) return error{errc::invalid_argument, "the calibration text is empty", one.name};
  if (options.calibration.empty()) {
    if (has_target(options))
      return error{errc::invalid_argument, "choosing types by a target needs text to measure with", "calibration"};
    if (options.method == method::gptq || options.method == method::awq)
      return error{errc::invalid_argument,
                   "the method " + std::string(to_string(options.method)) + " needs text to measure activations with",
                   "calibration"};
    if (options.rotate && options.importance != nullptr)
      return error{errc::invalid_argument,
                   "a rotation changes the activations: give calibration text instead of an importance matrix",
                   "importance"};
  }
  std::error_code ignored;
  if (!options.dry_run && out.has_parent_path() && !std::filesystem::is_directory(out.parent_path(), ignored))
    return error{errc::not_found, "the folder to write into does not exist", out.string()};
  if (has_target(options) && out.extension() == ".safetensors")
    return error{errc::invalid_argument,
                 "types chosen by a target are GGUF's: write a file whose name ends with .gguf, or give a type",
                 "type"};
  FLYWHEEL_TRY(const override_list overrides, override_list::compile(options.overrides));
  if (!has_target(options)) {
    FLYWHEEL_TRY(const decision made, by_type(from, options, overrides));
    return check_types(from, out, made.types, made.sparing, options);
  }
  FLYWHEEL_TRY(const std::vector<std::optional<dtype>> fixed, fixed_types(from, overrides));
  std::vector<dtype> types;
  for (std::size_t i = 0; i < fixed.size(); ++i) types.push_back(fixed[i].value_or(from.tensors()[i].type));
  return check_types(from, out, types, false, options);
}

std::string all_text(const quantize_options& options) {
  std::string all;
  for (const calibration_text& one : options.calibration) all += one.text;
  return all;
}

/// The activations' mean squares over all texts.
result<importance_matrix> collect(const io::archive& from, const quantize_options& options, const context& ctx) {
  importance_options how;
  how.chunk = options.calibration_ctx;
  how.max_chunks = options.calibration_windows;
  for (const calibration_text& one : options.calibration) how.dataset += (how.dataset.empty() ? "" : ", ") + one.name;
  how.context = ctx;
  how.control.stop = options.control.stop;
  return collect_importance(from, all_text(options), how);
}

/// AWQ: the model with scales moved between its layers, for tensors of these types.
result<io::archive> scaled(const io::archive& from, const std::vector<dtype>& types, const quantize_options& options,
                           const context& ctx) {
  const auto type_of = [&](std::string_view name) {
    return types[static_cast<std::size_t>(from.find(name) - from.tensors().data())];
  };
  calibration_options seen;
  seen.chunk = options.calibration_ctx;
  seen.max_chunks = options.calibration_windows;
  seen.wants = [&](std::string_view name) { return is_quantized(type_of(name)); };
  seen.context = ctx;
  seen.control.stop = options.control.stop;
  FLYWHEEL_TRY(const moments_by_tensor moments, collect_moments(from, all_text(options), seen));
  awq_options how;
  how.type = type_of;
  how.context = ctx;
  how.control.stop = options.control.stop;
  FLYWHEEL_TRY(const std::vector<channel_scales> scales, find_awq_scales(from, moments, how));
  return move_scales(from, scales);
}

class digest {
 public:
  template <class T>
  void add(const T& v)
    requires std::is_trivially_copyable_v<T>
  {
    sum_.add(std::as_bytes(std::span(&v, 1)));
  }
  template <class T>
  void add(const std::vector<T>& v) {
    add(v.size());
    sum_.add(std::as_bytes(std::span(v)));
  }
  void add(std::string_view text) {
    add(text.size());
    sum_.add(std::as_bytes(std::span(text.data(), text.size())));
  }
  [[nodiscard]] std::string text() const { return std::to_string(sum_.value()); }

 private:
  flywheel::detail::checksum sum_;
};

/// What the written tensors depend on, beside the plan and the metadata: the journal of an interrupted run has it. Of
/// the source, sizes and times of its files and the ends of every tensor stand for the whole.
result<std::string> key_of(const io::archive& from, const quantize_options& options) {
  constexpr std::uint64_t ends = 4096;
  digest sum;
  sum.add(options.method);
  sum.add(options.memory);
  sum.add(options.calibration_ctx);
  sum.add(options.calibration_windows);
  for (const calibration_text& one : options.calibration) sum.add(one.text);
  if (options.importance != nullptr)
    for (const auto& [name, entry] : options.importance->entries) {
      sum.add(name);
      sum.add(entry.sums);
      sum.add(entry.counts);
    }
  for (const std::filesystem::path& file : io::detail::files_of(from)) {
    std::error_code ignored;
    sum.add(std::filesystem::file_size(file, ignored));
    sum.add(std::filesystem::last_write_time(file, ignored).time_since_epoch().count());
  }
  std::vector<std::byte> sample;
  for (const io::tensor_info& tensor : from.tensors()) {
    const tensor_reading reading(from, tensor);
    sample.resize(static_cast<std::size_t>(std::min(tensor.bytes, ends)));
    FLYWHEEL_CHECK(from.read(tensor, 0, sample));
    sum.add(sample);
    FLYWHEEL_CHECK(from.read(tensor, tensor.bytes - sample.size(), sample));
    sum.add(sample);
  }
  return sum.text();
}

quantize_report report_of(const io::archive& original, const io::archive& from, const decision& made) {
  quantize_report report;
  double elements = 0;
  for (std::size_t i = 0; i < made.types.size(); ++i) {
    const io::tensor_info& tensor = from.tensors()[i];
    const io::tensor_info* before = original.find(tensor.name);
    if (before == nullptr) before = &tensor;  // a rotation made it
    quantized_tensor one;
    one.name = tensor.name;
    one.from = before->type;
    one.to = made.types[i];
    one.elements = tensor.dims.elements();
    one.bytes_before = before->bytes;
    one.bytes = one.to == tensor.type
                    ? tensor.bytes
                    : static_cast<std::uint64_t>(tensor.dims.rows()) * row_bytes(one.to, tensor.dims.cols());
    one.fallback = made.fallback[i];
    if (made.searched) one.share = made.searched->share[i];
    report.bytes_before += one.bytes_before;
    report.bytes += one.bytes;
    elements += static_cast<double>(one.elements);
    report.tensors.push_back(std::move(one));
  }
  report.bits_per_weight = elements > 0 ? 8 * static_cast<double>(report.bytes) / elements : 0;
  if (made.searched) {
    report.predicted_kl = made.searched->predicted_kl;
    report.measured = made.searched->measured;
  }
  return report;
}

/// All tensors as decided. Returns how many were there from an interrupted run.
result<std::uint64_t> write_model(const io::archive& from, const std::filesystem::path& out, const decision& made,
                                  const quantize_options& options, const context& ctx) {
  context_options alone;
  alone.executor = serial_executor();
  alone.isa = ctx.isa().selected;
  FLYWHEEL_TRY(const context one_worker, context::create(std::move(alone)));
  FLYWHEEL_TRY(std::string key, key_of(from, options));
  FLYWHEEL_TRY(auto pipeline,
               flywheel::detail::tensor_pipeline::create(from, out, metadata_of(from, made, options), made.types,
                                                         std::move(key), ctx, options.control));
  std::uint64_t resumed = 0;
  for (std::size_t i = 0; i < made.types.size(); ++i) {
    if (!pipeline.complete(i)) continue;
    pipeline.pass(i);
    ++resumed;
  }
  const auto write = [&](std::size_t i) -> result<void> {
    const io::tensor_info& tensor = from.tensors()[i];
    if (made.types[i] == tensor.type) return pipeline.copy(i);
    const std::vector<float> importance =
        options.importance != nullptr ? options.importance->of(tensor.name) : std::vector<float>();
    const tensor_rounder rounder(tensor, made.types[i], rounding_of(options.method), importance, one_worker);
    FLYWHEEL_CHECK(rounder.check());
    return pipeline.encode(i, rounder);
  };
  const auto write_all = [&]() -> result<void> {
    if (options.method == method::gptq)
      FLYWHEEL_CHECK(write_layerwise(from, made.types, pipeline,
                                     {all_text(options), options.calibration_ctx, options.calibration_windows,
                                      options.memory, ctx, options.control}));
    for (std::size_t i = 0; i < made.types.size(); ++i)
      if (!pipeline.complete(i)) FLYWHEEL_CHECK(write(i));
    return pipeline.finish();
  };
  if (auto done = write_all(); !done) {
    // What cannot end better the next time is not kept.
    const errc code = done.error().code;
    if (code == errc::cancelled || code == errc::io || code == errc::out_of_memory)
      done.error().message +=
          "; what is complete stays in a file ending with .partial, from which the same call goes on";
    else
      pipeline.abandon();
    return std::move(done).error();
  }
  return resumed;
}

}  // namespace

std::string_view to_string(method how) noexcept { return method_names[static_cast<std::size_t>(how)].first; }

std::optional<method> find_method(std::string_view name) noexcept {
  for (const auto& [known, how] : method_names)
    if (known == name) return how;
  return std::nullopt;
}

std::vector<std::string_view> quantize_types() {
  std::vector<std::string_view> names;
  for (const mix& m : all_mixes()) names.push_back(m.name);
  for (const dtype_info& row : dtype_table)
    if (can_quantize(row.type) && find_mix(row.name) == nullptr && row.kind != dtype_kind::integer &&
        row.kind != dtype_kind::real)
      names.push_back(row.name);
  return names;
}

result<quantize_report> quantize_model(const io::archive& original, const std::filesystem::path& out,
                                       const quantize_options& asked) {
  return flywheel::detail::guarded([&]() -> result<quantize_report> {
    const auto start = std::chrono::steady_clock::now();
    FLYWHEEL_CHECK(check_source(original, out, asked));
    FLYWHEEL_CHECK(check_request(original, out, asked));
    flywheel::context ctx = asked.context;
    if (!ctx) {
      FLYWHEEL_TRY(ctx, context::create());
    }
    quantize_options options = asked;
    // What is written: the model itself, or one that computes the same and is easier to round. Its activations are
    // others, so importance is measured again.
    io::archive from = original;
    if (options.rotate) {
      FLYWHEEL_TRY(from, quant::rotate(from));
      options.importance = nullptr;
    }
    importance_matrix collected;
    const auto measure_importance = [&]() -> result<void> {
      FLYWHEEL_TRY(collected, collect(from, options, ctx));
      options.importance = &collected;
      options.importance_file.clear();  // the metadata names what was used
      return {};
    };
    if (options.importance == nullptr && !options.calibration.empty()) FLYWHEEL_CHECK(measure_importance());
    FLYWHEEL_TRY(decision made, decide(from, options, ctx));
    if (options.method == method::awq) {
      FLYWHEEL_TRY(from, scaled(from, made.types, options, ctx));
      FLYWHEEL_CHECK(measure_importance());
      // Tensors that were scaled are f32 now, also those that stay.
      for (std::size_t i = 0; i < made.types.size(); ++i)
        if (!may_quantize(from.tensors()[i])) made.types[i] = from.tensors()[i].type;
    }
    FLYWHEEL_CHECK(check_types(from, out, made.types, made.sparing, options));

    quantize_report report = report_of(original, from, made);
    if (options.dry_run) return report;

    FLYWHEEL_TRY(report.resumed, write_model(from, out, made, options, ctx));
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  });
}

}  // namespace flywheel::inline v0::quant
