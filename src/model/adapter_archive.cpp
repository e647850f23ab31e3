#include "flywheel/model/adapter_archive.hpp"

#include <cmath>
#include <map>
#include <system_error>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/convert.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/model/basis.hpp"
#include "src/model/hugging_face/peft.hpp"

namespace flywheel::inline v0 {
namespace {

using io::detail::in_quotes;

/// general.type and adapter.type; empty when they are not there.
std::string_view text_of_key(const io::archive& file, std::string_view key) {
  const auto found = file.metadata().string(key);
  return found ? *found : std::string_view{};
}

result<void> check_kind(const io::archive& file) {
  const std::string where = file.path().string();
  if (text_of_key(file, "general.type") != "adapter")
    return error{errc::malformed, "this is no adapter: its metadata has no general.type that says so", where};
  if (text_of_key(file, "adapter.type") != "lora")
    return error{errc::unsupported,
                 "unsupported adapter type " + in_quotes(text_of_key(file, "adapter.type")) + "; known is lora", where};
  if (file.metadata().contains("adapter.alora.invocation_tokens"))
    return error{errc::unsupported, "unsupported: an adapter that works only behind certain tokens (aLoRA)", where};
  return {};
}

/// The parts of a change, by name of the weight.
struct change_parts {
  const io::tensor_info *a = nullptr, *b = nullptr, *magnitude = nullptr, *whole = nullptr;
};

/// In the order of the file.
struct parts_of_adapter {
  std::vector<std::string_view> weights;
  std::map<std::string_view, change_parts> of;
};

result<parts_of_adapter> collect(const io::archive& file) {
  parts_of_adapter all;
  for (const io::tensor_info& tensor : file.tensors()) {
    const detail::adapter_tensor_name name = detail::split_adapter_tensor(tensor.name);
    const auto [at, fresh] = all.of.try_emplace(name.weight);
    if (fresh) all.weights.push_back(name.weight);
    change_parts& parts = at->second;
    (name.part == detail::lora_a           ? parts.a
     : name.part == detail::lora_b         ? parts.b
     : name.part == detail::lora_magnitude ? parts.magnitude
                                           : parts.whole) = &tensor;
  }
  for (const std::string_view weight : all.weights) {
    const change_parts& p = all.of.at(weight);
    const auto wrong = [&](const io::tensor_info& tensor, std::string message) {
      return error{errc::malformed, std::move(message), file.path().string() + ": tensor " + in_quotes(tensor.name)};
    };
    if (p.whole != nullptr && (p.a != nullptr || p.b != nullptr || p.magnitude != nullptr))
      return wrong(*p.whole, "the adapter replaces this tensor and changes it at the same time");
    if (p.a != nullptr && p.b == nullptr) return wrong(*p.a, "its other factor, lora_b, is missing");
    if (p.b != nullptr && p.a == nullptr) return wrong(*p.b, "its other factor, lora_a, is missing");
    if (p.magnitude != nullptr && p.a == nullptr) return wrong(*p.magnitude, "its factors are missing");
  }
  return all;
}

result<double> alpha_of(const io::archive& file) {
  if (!file.metadata().contains("adapter.lora.alpha")) return 0.0;
  FLYWHEEL_TRY(const double alpha, file.metadata().number("adapter.lora.alpha"));
  if (!std::isfinite(alpha))
    return error{errc::malformed, "the value must be a finite number",
                 file.path().string() + ": key 'adapter.lora.alpha'"};
  return alpha;
}

/// Compares one adapter with one base.
class checker {
 public:
  checker(const io::archive& adapter, const io::archive& base, double alpha)
      : adapter_(adapter), base_(base), alpha_(alpha) {}

  [[nodiscard]] result<adapter_change> check(std::string_view weight, const change_parts& parts) const {
    adapter_change change;
    change.weight = weight;
    change.head = weight == detail::output_head;
    if (change.head && base_.find(weight) == nullptr) change.weight = detail::token_embeddings;  // tied
    const io::tensor_info& any = parts.whole != nullptr ? *parts.whole : *parts.a;
    const io::tensor_info* const to = base_.find(change.weight);
    if (to == nullptr) return wrong(errc::invalid_argument, any, base_file() + " has no tensor " + in_quotes(weight));
    for (const io::tensor_info* part : {parts.a, parts.b, parts.magnitude, parts.whole})
      if (part != nullptr && !formats::find_decoder(part->type))
        return wrong(errc::unsupported, *part,
                     "values of type " + std::string(to_string(part->type)) + " cannot be read");
    change.a = any.name;
    if (parts.whole != nullptr) {
      change.what = adapter_change::kind::replace;
      if (parts.whole->dims != to->dims) return misfit(*parts.whole, to->dims, *to);
      return change;
    }
    change.b = parts.b->name;
    FLYWHEEL_TRY(change.rank,
                 rank_of(*parts.a, *parts.b, *to, change.weight == detail::token_embeddings && !change.head));
    if (change.weight == detail::token_embeddings && !change.head) change.what = adapter_change::kind::embedding;
    if (alpha_ != 0) change.factor = alpha_ / static_cast<double>(change.rank);
    if (parts.magnitude != nullptr) {
      const shape per_output{parts.b->dims[0]};
      if (to->dims.rank() != 2) return wrong(errc::unsupported, *parts.magnitude, "unsupported: DoRA of experts");
      if (parts.magnitude->dims != per_output) return misfit(*parts.magnitude, per_output, *to);
      change.magnitude = parts.magnitude->name;
    }
    return change;
  }

 private:
  /// Experts have a pair of factors each: [experts, r, k] and [experts, n, r].
  [[nodiscard]] result<std::int64_t> rank_of(const io::tensor_info& a, const io::tensor_info& b,
                                             const io::tensor_info& to, bool embedding) const {
    const std::size_t d = to.dims.rank();
    if (d < 2 || d > 3)
      return wrong(errc::invalid_argument, a, in_quotes(to.name) + " of " + base_file() + " is no matrix");
    if (a.dims.rank() != d) return misfit(a, to.dims, to);
    const std::int64_t rank = embedding ? a.dims[1] : a.dims[d - 2];
    if (rank < 1) return wrong(errc::malformed, a, "the rank is 0");
    const std::int64_t n = to.dims[d - 2], k = to.dims[d - 1];
    shape like_a{rank, k}, like_b{n, rank};
    if (embedding) {
      like_a = {n, rank};
      like_b = {k, rank};
    } else if (d == 3) {
      like_a = {to.dims[0], rank, k};
      like_b = {to.dims[0], n, rank};
    }
    if (a.dims != like_a) return misfit(a, like_a, to);
    if (b.dims != like_b) {
      const bool fits_base = b.dims.rank() == d && b.dims[d - 2] == like_b[d - 2];
      if (fits_base)
        return wrong(errc::malformed, b,
                     "its shape " + b.dims.to_string() + " does not fit the rank of " + in_quotes(a.name) +
                         ", which is " + std::to_string(rank));
      return misfit(b, like_b, to);
    }
    return rank;
  }

  [[nodiscard]] std::string base_file() const {
    return base_.path().empty() ? "the base" : "the base " + base_.path().string();
  }
  [[nodiscard]] error wrong(errc code, const io::tensor_info& tensor, std::string message) const {
    return {code, std::move(message), adapter_.path().string() + ": tensor " + in_quotes(tensor.name)};
  }
  [[nodiscard]] error misfit(const io::tensor_info& tensor, const shape& wanted, const io::tensor_info& to) const {
    return wrong(errc::invalid_argument, tensor,
                 "its shape is " + tensor.dims.to_string() + ", but " + in_quotes(to.name) + " of " + base_file() +
                     " is " + to.dims.to_string() + " and asks for " + wanted.to_string() +
                     "; was it made for another model?");
  }

  const io::archive& adapter_;
  const io::archive& base_;
  double alpha_;
};

}  // namespace

result<io::archive> open_adapter_archive(const std::filesystem::path& path, const io::archive& base) {
  return detail::guarded([&]() -> result<io::archive> {
    std::error_code ignored;
    const std::filesystem::path name = path.filename();
    const bool inside = name == hugging_face::adapter_config_file || name == hugging_face::adapter_weights_file;
    io::archive file;
    if (inside || std::filesystem::is_directory(path, ignored)) {
      FLYWHEEL_TRY(const hugging_face::folder folder,
                   hugging_face::folder::open_adapter(inside ? path.parent_path() : path));
      FLYWHEEL_TRY(file, hugging_face::translate_adapter(folder, base));
    } else {
      FLYWHEEL_TRY(file, io::archive::open(path));
    }
    FLYWHEEL_CHECK(check_kind(file));
    FLYWHEEL_TRY([[maybe_unused]] const double alpha, alpha_of(file));
    FLYWHEEL_TRY([[maybe_unused]] const parts_of_adapter parts, collect(file));
    return file;
  });
}

result<std::vector<adapter_change>> adapter_changes(const io::archive& adapter, const io::archive& base) {
  return detail::guarded([&]() -> result<std::vector<adapter_change>> {
    FLYWHEEL_CHECK(check_kind(adapter));
    const std::string_view made_for = text_of_key(adapter, "general.architecture");
    const std::string_view given = text_of_key(base, "general.architecture");
    if (made_for != given)
      return error{errc::invalid_argument,
                   "the adapter was made for architecture " + in_quotes(made_for) + ", but the base " +
                       base.path().string() + " is " + in_quotes(given),
                   adapter.path().string()};
    for (const char* key : detail::basis_keys)
      if (base.metadata().contains(key))
        return error{errc::unsupported,
                     "the base " + base.path().string() +
                         " computes in another basis than the model that it was made "
                         "of (" +
                         key +
                         "), which adapters do not fit; use a base that was quantized without scales moved "
                         "between layers and without rotation, or merge the adapter first and quantize then",
                     adapter.path().string()};
    FLYWHEEL_TRY(const double alpha, alpha_of(adapter));
    FLYWHEEL_TRY(const parts_of_adapter parts, collect(adapter));
    if (parts.weights.empty())
      return error{errc::malformed, "the adapter has no tensors, so it changes nothing", adapter.path().string()};
    const checker one(adapter, base, alpha);
    std::vector<adapter_change> changes;
    for (const std::string_view weight : parts.weights) {
      FLYWHEEL_TRY(adapter_change change, one.check(weight, parts.of.at(weight)));
      changes.push_back(std::move(change));
    }
    return changes;
  });
}

result<void> write_adapter(const io::archive& adapter, const io::archive& base, const std::filesystem::path& out) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(const std::vector<adapter_change> changes, adapter_changes(adapter, base));
    if (out.extension() != ".gguf") return hugging_face::write_adapter_folder(adapter, base, changes, out);
    FLYWHEEL_TRY([[maybe_unused]] const converted_model done, convert(adapter, out));
    return {};
  });
}

}  // namespace flywheel::inline v0
