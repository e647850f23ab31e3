#include "flywheel/model/convert.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/io/writer.hpp"
#include "src/model/device_safetensors.hpp"
#include "src/model/tensor_types.hpp"

namespace flywheel::inline v0 {
namespace {

constexpr std::int64_t slice_bytes = std::int64_t{8} << 20;  ///< Stored bytes that are in memory at once.

/// general.file_type of a model whose matrices have this type; llama.h, LLAMA_FTYPE_*.
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

/// Rows of one tensor through the codecs, in parallel. `values` [rows, cols] is for its use.
void encode_rows(const io::tensor_info& tensor, dtype type, std::span<const std::byte> stored, std::int64_t rows,
                 std::vector<float>& values, std::byte* out, executor& pool) {
  const formats::decode_fn decode = formats::find_decoder(tensor.type);
  const formats::encode_fn encode = formats::find_encoder(type);
  const std::int64_t cols = tensor.dims.cols();
  const std::size_t from = row_bytes(tensor.type, cols), to = row_bytes(type, cols);
  const std::size_t grain = std::max<std::size_t>(1, (std::size_t{1} << 16) / std::max<std::size_t>(1, from));
  parallel_for(pool, static_cast<std::size_t>(rows), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      float* const row = values.data() + r * static_cast<std::size_t>(cols);
      decode(stored.data() + r * from, cols, row);
      encode(row, cols, out + r * to);
    }
  });
}

/// Types that models are made of and this version can encode.
result<void> check_type(std::optional<dtype> type) {
  if (!type || detail::is_device_format(*type)) return {};
  for (const auto& [known, number] : file_types)
    if (known == *type && formats::find_encoder(*type) != nullptr) return {};
  return error{errc::invalid_argument, "weights cannot be encoded as " + std::string(to_string(*type)), "type"};
}

}  // namespace

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
      for (const auto& [type, number] : file_types)
        if (type == *options.type) meta.set("general.file_type", number);
    }

    converted_model done;
    std::vector<io::tensor_plan> plans;
    std::uint64_t total = 0;
    for (const io::tensor_info& tensor : from.tensors()) {
      const dtype type = target_of(tensor, options.type);
      const bool changes = type != tensor.type;
      plans.push_back({tensor.name, type, tensor.dims, changes ? 0 : tensor.bytes});
      total +=
          changes ? static_cast<std::uint64_t>(tensor.dims.rows()) * row_bytes(type, tensor.dims.cols()) : tensor.bytes;
      done.changed += changes ? 1 : 0;
    }
    done.tensors = plans.size();
    const bool safetensors = out.extension() == ".safetensors";
    std::vector<io::tensor_plan> in_file = plans;
    if (safetensors) {
      in_file.clear();
      for (const io::tensor_plan& plan : plans) detail::plan_safetensors(plan, in_file);
      FLYWHEEL_TRY(meta, detail::to_strings(meta));
    }
    FLYWHEEL_TRY(
        io::writer writer,
        io::writer::create(out, safetensors ? io::container::safetensors : io::container::gguf, meta, in_file));
    std::vector<std::byte> stored, encoded, codes, scales;
    std::vector<float> values;
    for (std::size_t i = 0; i < plans.size(); ++i) {
      const io::tensor_info& tensor = from.tensors()[i];
      const dtype type = plans[i].type;
      const std::int64_t row =
          static_cast<std::int64_t>(std::max<std::size_t>(1, row_bytes(tensor.type, tensor.dims.cols())));
      const auto slice = static_cast<std::uint64_t>(std::max<std::int64_t>(1, slice_bytes / row) * row);
      for (std::uint64_t at = 0; at < tensor.bytes;) {
        if (options.control.stopped()) return error{errc::cancelled, "converting was cancelled", out.string()};
        stored.resize(static_cast<std::size_t>(std::min(slice, tensor.bytes - at)));
        FLYWHEEL_CHECK(from.read(tensor, at, stored));
        at += stored.size();
        std::span<const std::byte> piece = stored;
        if (type != tensor.type) {
          const auto rows = static_cast<std::int64_t>(stored.size()) / row;
          encoded.resize(static_cast<std::size_t>(rows) * row_bytes(type, tensor.dims.cols()));
          values.resize(static_cast<std::size_t>(rows * tensor.dims.cols()));
          encode_rows(tensor, type, stored, rows, values, encoded.data(), ctx.executor());
          piece = encoded;
        }
        done.bytes += piece.size();
        if (safetensors && detail::is_device_format(type)) {
          const std::int64_t cols = tensor.dims.cols();
          codes.clear();
          detail::take_apart(type, cols, static_cast<std::int64_t>(piece.size() / row_bytes(type, cols)), piece.data(),
                             codes, scales);
          piece = codes;
        }
        FLYWHEEL_CHECK(writer.write(piece));
        if (options.control.progress) options.control.progress(done.bytes, total, tensor.name);
      }
      FLYWHEEL_CHECK(writer.write(scales));  // after all codes
      scales.clear();
      from.release(tensor);
    }
    FLYWHEEL_CHECK(writer.finish());
    return done;
  });
}

}  // namespace flywheel::inline v0
