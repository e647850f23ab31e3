#include "flywheel/model/convert.hpp"

#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/model/device_safetensors.hpp"
#include "src/model/tensor_pipeline.hpp"
#include "src/model/tensor_types.hpp"

namespace flywheel::inline v0 {
namespace {

constexpr std::pair<dtype, std::uint32_t> file_types[] = {
    {dtype::f32, 0},    {dtype::f16, 1},     {dtype::q4_0, 2},     {dtype::q4_1, 3},    {dtype::q8_0, 7},
    {dtype::q5_0, 8},   {dtype::q5_1, 9},    {dtype::q2_k, 10},    {dtype::q3_k, 11},   {dtype::q4_k, 14},
    {dtype::q5_k, 16},  {dtype::q6_k, 18},   {dtype::iq2_xxs, 19}, {dtype::iq2_xs, 20}, {dtype::iq3_xxs, 23},
    {dtype::iq1_s, 24}, {dtype::iq4_nl, 25}, {dtype::iq3_s, 26},   {dtype::iq2_s, 28},  {dtype::iq4_xs, 30},
    {dtype::iq1_m, 31}, {dtype::bf16, 32},   {dtype::tq1_0, 36},   {dtype::tq2_0, 37},  {dtype::mxfp4, 38}};

bool is_float(dtype type) noexcept { return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16; }

/// What a tensor becomes.
dtype target_of(const io::tensor_info& tensor, std::optional<dtype> wanted) noexcept {
  if (!wanted || !is_float(tensor.type) || detail::stays_f32(tensor.name, tensor.dims.rank())) return tensor.type;
  const auto whole = [&](dtype type) { return tensor.dims.cols() % info(type)->block_elements == 0; };
  if (whole(*wanted)) return *wanted;
  // Devices take a scale per row as well.
  if (*wanted == dtype::q8_g128) return dtype::q8_channel;
  if (*wanted == dtype::q4_g128 && whole(dtype::q4_channel)) return dtype::q4_channel;
  return dtype::f16;
}

/// Types that models are made of and this version can encode.
result<void> check_type(std::optional<dtype> type) {
  if (!type || detail::is_device_format(*type)) return {};
  if (detail::file_type_of(*type) && formats::find_encoder(*type) != nullptr) return {};
  return error{errc::invalid_argument, "weights cannot be encoded as " + std::string(to_string(*type)), "type"};
}

}  // namespace

std::optional<std::uint32_t> detail::file_type_of(dtype type) noexcept {
  for (const auto& [known, number] : file_types)
    if (known == type) return number;
  return std::nullopt;
}

result<converted_model> convert(const io::archive& from, const std::filesystem::path& out,
                                const convert_options& options) {
  return detail::guarded([&]() -> result<converted_model> {
    FLYWHEEL_CHECK(check_type(options.type));
    if (!from.metadata().contains("general.architecture"))
      return error{errc::unsupported, "this is no model: it has no metadata that says which", from.path().string()};
    FLYWHEEL_TRY(const flywheel::context ctx, options.context.or_default());
    io::metadata meta = from.metadata();
    if (options.type) {
      if (detail::is_device_format(*options.type)) meta.erase("general.file_type");  // they have none
      if (const auto number = detail::file_type_of(*options.type)) meta.set("general.file_type", *number);
    }

    converted_model done;
    std::vector<dtype> types;
    for (const io::tensor_info& tensor : from.tensors()) {
      types.push_back(target_of(tensor, options.type));
      done.changed += types.back() != tensor.type ? 1 : 0;
    }
    done.tensors = types.size();
    FLYWHEEL_TRY(auto pipeline, detail::tensor_pipeline::create(from, out, std::move(meta), types, std::nullopt, ctx,
                                                                options.control));
    for (std::size_t i = 0; i < types.size(); ++i) {
      const io::tensor_info& tensor = from.tensors()[i];
      if (types[i] == tensor.type) {
        FLYWHEEL_CHECK(pipeline.copy(i));
        continue;
      }
      FLYWHEEL_CHECK(pipeline.encode(i, [&](std::span<const float> rows, std::int64_t, std::span<std::byte> stored) {
        return detail::encode_plainly(types[i], tensor.dims.cols(), rows, stored);
      }));
    }
    FLYWHEEL_CHECK(pipeline.finish());
    done.bytes = pipeline.bytes();
    return done;
  });
}

}  // namespace flywheel::inline v0
