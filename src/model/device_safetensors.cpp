#include "src/model/device_safetensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "flywheel/detail/try.hpp"
#include "src/io/computed_tensors.hpp"

namespace flywheel::inline v0::detail {
namespace {

constexpr std::string_view mark = "flywheel.safetensors", version = "1", scales_suffix = ".scales";

/// How a row is stored: `units` times the scale's bytes, then the codes' bytes.
struct row_parts {
  std::size_t units, scale, codes;
  bool interleaved;  ///< Nibbles are elements j and j + 64 of the unit.
};

row_parts parts_of(dtype type, std::int64_t cols) noexcept {
  const dtype_info& facts = *info(type);
  if (facts.kind == dtype_kind::row) return {1, row_header_bytes, row_bytes(type, cols) - row_header_bytes, false};
  return {static_cast<std::size_t>(cols / facts.block_elements), 2, facts.block_bytes - 2, type == dtype::q4_g128};
}

bool is_four_bits(dtype type) noexcept { return type == dtype::q4_g128 || type == dtype::q4_channel; }

/// Element i of 64 bytes of nibbles.
unsigned pair_nibble(const std::byte* p, std::size_t i) {
  return std::to_integer<unsigned>(i % 2 == 0 ? p[i / 2] : p[i / 2] >> 4) & 15U;
}
unsigned split_nibble(const std::byte* p, std::size_t i) {
  return std::to_integer<unsigned>(i < 64 ? p[i] : p[i - 64] >> 4) & 15U;
}

void put_together(dtype type, std::int64_t cols, const std::byte* codes, const std::byte* scales, std::byte* row) {
  const row_parts parts = parts_of(type, cols);
  for (std::size_t u = 0; u < parts.units; ++u, codes += parts.codes, scales += parts.scale) {
    std::memcpy(row, scales, parts.scale);
    row += parts.scale;
    if (parts.interleaved)
      for (std::size_t j = 0; j < 64; ++j)
        row[j] = static_cast<std::byte>(pair_nibble(codes, j) | pair_nibble(codes, j + 64) << 4);
    else
      std::memcpy(row, codes, parts.codes);
    row += parts.codes;
  }
}

class joined final : public io::computed_tensor {
 public:
  joined(io::archive base, io::tensor_info codes, io::tensor_info scales, dtype type, std::int64_t cols)
      : base_(std::move(base)), codes_(std::move(codes)), scales_(std::move(scales)), type_(type), cols_(cols) {}

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    const row_parts parts = parts_of(type_, cols_);
    std::vector<std::byte> codes(parts.units * parts.codes), scales(parts.units * parts.scale);
    for (std::int64_t r = first; r < first + count; ++r, out += row_bytes(type_, cols_)) {
      FLYWHEEL_CHECK(base_.read(codes_, static_cast<std::uint64_t>(r) * codes.size(), codes));
      FLYWHEEL_CHECK(base_.read(scales_, static_cast<std::uint64_t>(r) * scales.size(), scales));
      put_together(type_, cols_, codes.data(), scales.data(), out);
    }
    return {};
  }
  void release() const noexcept override {
    base_.release(codes_);
    base_.release(scales_);
  }

 private:
  io::archive base_;
  io::tensor_info codes_, scales_;
  dtype type_;
  std::int64_t cols_;
};

std::optional<shape> with_cols(const shape& dims, std::int64_t cols) {
  std::vector<std::int64_t> extents(dims.dims().begin(), dims.dims().end());
  extents.back() = cols;
  const result<shape> made = shape::of(extents);
  return made ? std::optional(*made) : std::nullopt;
}

/// What codes and scales make: the types say which format, the shapes must fit it.
std::optional<std::pair<dtype, shape>> format_of(const io::tensor_info& codes, const io::tensor_info& scales) {
  const bool four = codes.type == dtype::u8, grouped = scales.type == dtype::f16;
  if ((!four && codes.type != dtype::i8) || (!grouped && scales.type != dtype::f32) || codes.dims.rank() == 0)
    return std::nullopt;
  const dtype type =
      grouped ? (four ? dtype::q4_g128 : dtype::q8_g128) : (four ? dtype::q4_channel : dtype::q8_channel);
  const std::int64_t stored = codes.dims.cols();
  if (stored > INT64_MAX / 2) return std::nullopt;
  const std::int64_t cols = four ? 2 * stored : stored;
  if (cols == 0 || cols % info(type)->block_elements != 0) return std::nullopt;
  const std::optional<shape> expected = with_cols(codes.dims, grouped ? cols / 128 : 1),
                             dims = with_cols(codes.dims, cols);
  if (!expected || !dims) return std::nullopt;
  const auto wanted = grouped ? expected->dims() : expected->dims().first(expected->rank() - 1);
  const auto found = scales.dims.dims();
  if (!std::equal(wanted.begin(), wanted.end(), found.begin(), found.end())) return std::nullopt;
  return std::pair(type, *dims);
}

/// Whether integers, alone or in a list, are integers of this size: JSON's conversion does not look.
template <class T>
bool fits(const nlohmann::json& json) {
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
    if (json.is_number_unsigned()) return std::in_range<T>(json.get<std::uint64_t>());
    return json.is_number_integer() && std::in_range<T>(json.get<std::int64_t>());
  } else if constexpr (requires { typename T::value_type; } && !std::is_same_v<T, std::string>) {
    return json.is_array() && std::all_of(json.begin(), json.end(),
                                          [](const nlohmann::json& one) { return fits<typename T::value_type>(one); });
  } else {
    return true;
  }
}

/// The alternative of io::value whose type_name is `name`, from JSON. Throws nlohmann's exceptions.
template <std::size_t I = 0>
std::optional<io::value> from_json(std::string_view name, const nlohmann::json& json) {
  if constexpr (I == std::variant_size_v<io::value>) {
    return std::nullopt;
  } else {
    using type = std::variant_alternative_t<I, io::value>;
    if (io::type_name(io::value(std::in_place_index<I>)) != name) return from_json<I + 1>(name, json);
    if (!fits<type>(json)) return std::nullopt;
    return io::value(std::in_place_index<I>, json.get<type>());
  }
}

std::optional<io::value> from_text(std::string_view text) {
  const std::size_t colon = text.find(": ");
  if (colon == std::string_view::npos) return std::nullopt;
  try {
    return from_json(text.substr(0, colon), nlohmann::json::parse(text.substr(colon + 2)));
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

bool is_finite(const nlohmann::json& json) {
  if (json.is_array())
    return std::all_of(json.begin(), json.end(), [](const nlohmann::json& one) { return is_finite(one); });
  return !json.is_number_float() || std::isfinite(json.get<double>());
}

}  // namespace

bool is_device_format(dtype type) noexcept {
  return type == dtype::q8_g128 || type == dtype::q4_g128 || type == dtype::q8_channel || type == dtype::q4_channel;
}

void plan_safetensors(const io::tensor_plan& tensor, std::vector<io::tensor_plan>& plans) {
  if (!is_device_format(tensor.type)) {
    plans.push_back(tensor);
    return;
  }
  const bool four = is_four_bits(tensor.type), grouped = info(tensor.type)->kind == dtype_kind::block;
  const std::int64_t cols = tensor.dims.cols();
  const shape groups = with_cols(tensor.dims, grouped ? cols / 128 : 1).value();
  plans.push_back(
      {tensor.name, four ? dtype::u8 : dtype::i8, with_cols(tensor.dims, four ? cols / 2 : cols).value(), 0});
  plans.push_back({tensor.name + std::string(scales_suffix), grouped ? dtype::f16 : dtype::f32,
                   grouped ? groups : shape::of(groups.dims().first(groups.rank() - 1)).value(), 0});
}

void take_apart(dtype type, std::int64_t cols, std::int64_t rows, const std::byte* from, std::vector<std::byte>& codes,
                std::vector<std::byte>& scales) {
  const row_parts parts = parts_of(type, cols);
  for (std::size_t u = 0; u < static_cast<std::size_t>(rows) * parts.units; ++u) {
    scales.insert(scales.end(), from, from + parts.scale);
    from += parts.scale;
    if (parts.interleaved)
      for (std::size_t i = 0; i < 128; i += 2)
        codes.push_back(static_cast<std::byte>(split_nibble(from, i) | split_nibble(from, i + 1) << 4));
    else
      codes.insert(codes.end(), from, from + parts.codes);
    from += parts.codes;
  }
}

result<io::metadata> to_strings(const io::metadata& meta) {
  io::metadata strings;
  strings.set(std::string(mark), std::string(version));
  for (const io::entry& e : meta.entries()) {
    const nlohmann::json json = std::visit([](const auto& x) { return nlohmann::json(x); }, e.value);
    if (!is_finite(json))
      return error{errc::unsupported, "safetensors has no numbers that are not finite", "key " + e.key};
    try {
      strings.set(e.key, std::string(io::type_name(e.value)) + ": " + json.dump());
    } catch (const nlohmann::json::exception&) {
      return error{errc::unsupported, "safetensors has no text that is not UTF-8", "key " + e.key};
    }
  }
  return strings;
}

bool holds_model(const io::archive& file) {
  return file.container() == io::container::safetensors && file.metadata().contains(mark);
}

result<io::archive> open_safetensors_model(const io::archive& file) {
  const auto malformed = [&](std::string message, const std::string& what) {
    return error{errc::malformed, std::move(message), file.path().string() + ": " + what};
  };
  io::archive_content content;
  for (const io::entry& e : file.metadata().entries()) {
    const auto& text = std::get<std::string>(e.value);
    if (e.key == mark) {
      if (text != version)
        return error{errc::unsupported, "this is version " + text + " of such files; this library knows 1",
                     file.path().string()};
      continue;
    }
    std::optional<io::value> value = from_text(text);
    if (!value) return malformed("the value is none of GGUF's metadata", "key " + e.key);
    content.metadata.set(e.key, *std::move(value));
  }
  content.sources.assign(file.sources().begin(), file.sources().end());
  const auto computed = std::make_shared<io::computed_source>();
  for (const io::tensor_info& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    if (name.ends_with(scales_suffix) && file.find(name.substr(0, name.size() - scales_suffix.size())) != nullptr)
      continue;
    const io::tensor_info* const scales = file.find(tensor.name + std::string(scales_suffix));
    content.tensors.push_back(tensor);
    if (scales == nullptr) continue;
    const auto format = format_of(tensor, *scales);
    if (!format) return malformed("types and shapes of codes and scales fit no format", "tensor " + tensor.name);
    const auto& [type, dims] = *format;
    const std::int64_t rows = dims.elements() / dims.cols();
    const std::size_t row = row_bytes(type, dims.cols());
    const std::uint64_t offset =
        computed->add(std::make_unique<joined>(file, tensor, *scales, type, dims.cols()), rows, row);
    content.tensors.back() = {tensor.name,
                              type,
                              dims,
                              offset,
                              static_cast<std::uint64_t>(rows) * row,
                              static_cast<std::uint32_t>(content.sources.size())};
  }
  content.sources.push_back(computed);
  content.path = file.path();
  content.file_bytes = file.file_bytes();
  content.files = file.parts();
  return io::archive::assemble(std::move(content));
}

}  // namespace flywheel::inline v0::detail
