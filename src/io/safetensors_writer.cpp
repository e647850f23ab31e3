#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/io/safetensors.hpp"
#include "src/io/writing.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

/// A JSON string. `text` must be valid UTF-8.
std::string json_string(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace

result<layout> write_safetensors_header(output_file& out, const metadata& meta, std::span<const tensor_plan> tensors) {
  layout plan;
  plan.bytes.reserve(tensors.size());
  std::string json = "{";
  bool first = true;
  for (const entry& e : meta.entries()) {
    const auto* text = std::get_if<std::string>(&e.value);
    if (text == nullptr) continue;
    if (!valid_utf8(e.key) || !valid_utf8(*text))
      return error{errc::invalid_argument, "key or value is not valid UTF-8",
                   out.where() + ": key " + in_quotes(e.key)};
    json += std::exchange(first, false) ? "\"__metadata__\":{" : ",";
    json += json_string(e.key) + ':' + json_string(*text);
  }
  if (!first) json += '}';

  std::uint64_t end = 0;
  for (const tensor_plan& tensor : tensors) {
    const auto refuse = [&](errc code, std::string message) {
      return error{code, std::move(message), out.where() + ": tensor " + in_quotes(tensor.name)};
    };
    if (tensor.name == "__metadata__")
      return refuse(errc::invalid_argument, "safetensors keeps this name for its metadata");
    if (!in_safetensors(tensor.type))
      return refuse(errc::unsupported, "safetensors has no dtype " + std::string(to_string(tensor.type)));
    const std::optional<std::int64_t> elements = checked_elements(tensor.dims.dims());
    const std::optional<std::uint64_t> bytes =
        elements ? checked_bytes(*info(tensor.type), *elements, tensor.dims.cols()) : std::nullopt;
    if (!bytes || *bytes > (std::uint64_t{1} << 62) - end)
      return refuse(errc::invalid_argument, "the shape " + tensor.dims.to_string() + " is negative or too large");
    if (tensor.bytes != 0 && tensor.bytes != *bytes)
      return refuse(errc::invalid_argument,
                    "the given size is not the " + std::to_string(*bytes) + " bytes of its shape and type");
    if (json.size() > 1) json += ',';
    json += json_string(tensor.name) + ":{\"dtype\":\"" + std::string(to_string(tensor.type)) + "\",\"shape\":[";
    for (std::size_t d = 0; d < tensor.dims.rank(); ++d) json += (d ? "," : "") + std::to_string(tensor.dims[d]);
    json += "],\"data_offsets\":[" + std::to_string(end) + ',' + std::to_string(end + *bytes) + "]}";
    end += *bytes;
    plan.bytes.push_back(*bytes);
  }
  json += '}';
  json.append((8 - json.size() % 8) % 8, ' ');  // the data begin at a multiple of 8
  if (json.size() > max_json_bytes)
    return error{errc::unsupported, "the header would be longer than " + std::to_string(max_json_bytes) + " bytes",
                 out.where()};

  std::byte length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(json.size() >> (8 * i));
  FLYWHEEL_CHECK(out.write(length));
  FLYWHEEL_CHECK(out.write(std::as_bytes(std::span(json))));
  return plan;
}

}  // namespace flywheel::inline v0::io::detail
