#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <type_traits>

#include "flywheel/detail/try.hpp"
#include "src/io/gguf.hpp"
#include "src/io/reading.hpp"
#include "src/io/writing.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

// GGUF allows 64 bytes, but the most used reader takes one of them for a terminator.
constexpr std::size_t max_tensor_name = 63;

class header_writer {
 public:
  explicit header_writer(output_file& out) : out_(out) {}

  template <class T>
  result<void> number(T v) {
    std::byte bytes[sizeof(T)];
    std::memcpy(bytes, &v, sizeof(T));
    if constexpr (std::endian::native == std::endian::big) std::reverse(std::begin(bytes), std::end(bytes));
    return out_.write(bytes);
  }
  result<void> text(std::string_view v) {
    FLYWHEEL_CHECK(number(static_cast<std::uint64_t>(v.size())));
    return out_.write(std::as_bytes(std::span(v.data(), v.size())));
  }

  result<void> any(const value& v) {
    if (v.index() >= scalar_alternatives) FLYWHEEL_CHECK(number(array_type));
    FLYWHEEL_CHECK(number(value_type_of(v.index())));
    return std::visit([&](const auto& x) { return one(x); }, v);
  }

 private:
  template <class T>
  result<void> one(const T& v) {
    return number(v);
  }
  result<void> one(bool v) { return number(static_cast<std::uint8_t>(v)); }
  result<void> one(const std::string& v) { return text(v); }
  template <class T>
  result<void> one(const std::vector<T>& list) {
    FLYWHEEL_CHECK(number(static_cast<std::uint64_t>(list.size())));
    if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool> && std::endian::native == std::endian::little) {
      return out_.write(std::as_bytes(std::span(list)));
    } else {
      for (const auto& x : list) FLYWHEEL_CHECK(one(static_cast<const T&>(x)));
      return {};
    }
  }

  output_file& out_;
};

std::uint64_t stored_bytes(const value& v) {
  return std::visit(
      [](const auto& x) -> std::uint64_t {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_arithmetic_v<T>) {
          return sizeof(T);
        } else if constexpr (std::is_same_v<T, std::string>) {
          return 8 + x.size();
        } else {
          std::uint64_t bytes = 4 + 8;  // the elements' type and their number
          if constexpr (std::is_same_v<T, std::vector<std::string>>)
            for (const std::string& one : x) bytes += 8 + one.size();
          else
            bytes += x.size() * sizeof(typename T::value_type);
          return bytes;
        }
      },
      v);
}

/// The bytes of a planned tensor, or why GGUF cannot hold it.
result<std::uint64_t> planned_bytes(const tensor_plan& tensor) {
  const auto refuse = [](errc code, std::string message) { return error{code, std::move(message), {}}; };
  if (tensor.name.size() > max_tensor_name)
    return refuse(errc::invalid_argument,
                  "the name is longer than " + std::to_string(max_tensor_name) + " bytes, which GGUF readers refuse");
  if (tensor.dims.rank() < 1 || tensor.dims.rank() > max_gguf_rank)
    return refuse(errc::unsupported, "GGUF tensors have 1 to 4 dimensions");
  const auto dims = tensor.dims.dims();
  const std::optional<std::int64_t> elements = checked_elements(dims);
  if (!elements || *elements == 0)
    return refuse(errc::invalid_argument, "the shape " + tensor.dims.to_string() + " is empty or too large for GGUF");
  const auto id = static_cast<std::uint32_t>(tensor.type);
  if (!gguf_has_type(id))
    return refuse(errc::unsupported,
                  "GGUF has no tensor type " + std::string(to_string(tensor.type)) + " (" + std::to_string(id) + ")");
  const dtype_info* facts = info(tensor.type);
  if (facts == nullptr) {
    if (tensor.bytes == 0 || tensor.bytes > (std::uint64_t{1} << 62))
      return refuse(errc::invalid_argument, "the size in bytes of a tensor of unknown type must be given");
    return tensor.bytes;
  }
  const std::optional<std::uint64_t> bytes = checked_bytes(*facts, *elements, tensor.dims.cols());
  if (!bytes || *bytes > (std::uint64_t{1} << 62))
    return refuse(errc::invalid_argument, "rows of " + std::to_string(tensor.dims.cols()) +
                                              " elements are not whole blocks of " + std::string(facts->name) +
                                              ", or there are too many");
  if (tensor.bytes != 0 && tensor.bytes != *bytes)
    return refuse(errc::invalid_argument, "the given size, " + std::to_string(tensor.bytes) + " bytes, is not the " +
                                              std::to_string(*bytes) + " of its shape and type");
  return *bytes;
}

}  // namespace

result<layout> write_gguf_header(output_file& out, const metadata& meta, std::span<const tensor_plan> tensors) {
  const auto refuse_key = [&](std::string_view key, std::string message) {
    return error{errc::invalid_argument, std::move(message), out.where() + ": key " + in_quotes(key)};
  };
  if (meta.entries().size() > max_keys)
    return error{errc::unsupported, "more than " + std::to_string(max_keys) + " keys", out.where()};
  for (const entry& e : meta.entries()) {
    if (e.key.empty() || e.key.size() > max_name_bytes) return refuse_key(e.key, "a key has 1 to 65535 bytes");
    if (!valid_utf8(e.key)) return refuse_key(e.key, "the key is not valid UTF-8");
  }
  layout plan;
  if (result<std::uint64_t> alignment = check_reserved_keys(meta); alignment)
    plan.alignment = *alignment;
  else
    return error{errc::invalid_argument, alignment.error().message, out.where() + ": " + alignment.error().where};

  std::uint64_t end = 0;
  plan.bytes.reserve(tensors.size());
  for (const tensor_plan& tensor : tensors) {
    const result<std::uint64_t> bytes = planned_bytes(tensor);
    const std::string where = out.where() + ": tensor " + in_quotes(tensor.name);
    if (!bytes) return error{bytes.error().code, bytes.error().message, where};
    end = align_up(end + *bytes, plan.alignment);
    if (end > (std::uint64_t{1} << 62)) return error{errc::invalid_argument, "the file would be too large", where};
    plan.bytes.push_back(*bytes);
  }

  header_writer header(out);
  FLYWHEEL_CHECK(out.write(std::as_bytes(std::span(gguf_magic.data(), gguf_magic.size()))));
  FLYWHEEL_CHECK(header.number(gguf_version));
  FLYWHEEL_CHECK(header.number(static_cast<std::int64_t>(tensors.size())));
  FLYWHEEL_CHECK(header.number(static_cast<std::int64_t>(meta.entries().size())));
  for (const entry& e : meta.entries()) {
    FLYWHEEL_CHECK(header.text(e.key));
    FLYWHEEL_CHECK(header.any(e.value));
  }
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto dims = tensors[i].dims.dims();
    FLYWHEEL_CHECK(header.text(tensors[i].name));
    FLYWHEEL_CHECK(header.number(static_cast<std::uint32_t>(dims.size())));
    for (std::size_t d = dims.size(); d-- > 0;) FLYWHEEL_CHECK(header.number(dims[d]));  // innermost first
    FLYWHEEL_CHECK(header.number(static_cast<std::uint32_t>(tensors[i].type)));
    FLYWHEEL_CHECK(header.number(offset));
    offset = align_up(offset + plan.bytes[i], plan.alignment);
  }
  if (out.position() > max_header_bytes)
    return error{errc::unsupported,
                 "metadata and tensor table are longer than " + std::to_string(max_header_bytes >> 20) + " MiB",
                 out.where()};
  static constexpr std::byte zeros[64] = {};
  while (!tensors.empty() && out.position() % plan.alignment != 0) {
    const std::uint64_t n = std::min<std::uint64_t>(sizeof zeros, plan.alignment - out.position() % plan.alignment);
    FLYWHEEL_CHECK(out.write(std::span(zeros).first(static_cast<std::size_t>(n))));
  }
  return plan;
}

}  // namespace flywheel::inline v0::io::detail

namespace flywheel::inline v0::io {

std::uint64_t gguf_header_bytes(const metadata& meta, std::span<const tensor_info> tensors) {
  std::uint64_t bytes = 4 + 4 + 8 + 8;  // magic, version, and the numbers of tensors and keys
  for (const entry& e : meta.entries()) bytes += 8 + e.key.size() + 4 + detail::stored_bytes(e.value);
  for (const tensor_info& t : tensors) bytes += 8 + t.name.size() + 4 + 8 * t.dims.rank() + 4 + 8;
  const auto alignment = meta.integer(detail::alignment_key);
  return detail::align_up(
      bytes, alignment && *alignment > 0 ? static_cast<std::uint64_t>(*alignment) : detail::default_alignment);
}

}  // namespace flywheel::inline v0::io
