// Importance matrices as files: llama.cpp's GGUF form, and the binary form that it wrote before.
#include <algorithm>
#include <cmath>
#include <utility>

#include "flywheel/core/mapped_file.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/io/writer.hpp"
#include "flywheel/quant/importance.hpp"
#include "src/io/byte_source.hpp"
#include "src/io/gguf.hpp"
#include "src/io/header_cursor.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::string_view sums_suffix = ".in_sum2", counts_suffix = ".counts";
constexpr std::string_view type_key = "general.type", type_value = "imatrix";

error malformed(std::string what, std::string_view tensor) {
  return {errc::malformed, std::move(what), io::detail::in_quotes(tensor)};
}

/// Mean squares and numbers of rows.
result<void> check_values(const std::vector<float>& values, std::string_view tensor) {
  if (std::any_of(values.begin(), values.end(), [](float v) { return !(v >= 0) || !std::isfinite(v); }))
    return malformed("a sum or count is negative or not finite", tensor);
  return {};
}

result<std::vector<float>> floats_of(const io::archive& file, const io::tensor_info& tensor) {
  if (tensor.type != dtype::f32) return malformed("the tensor is not f32", tensor.name);
  FLYWHEEL_TRY(const tensor_view view, file.view(tensor));
  std::vector<float> values(static_cast<std::size_t>(tensor.dims.elements()));
  FLYWHEEL_CHECK(formats::decode(view, values));
  FLYWHEEL_CHECK(check_values(values, tensor.name));
  return values;
}

std::uint32_t number_of(const io::metadata& meta, std::string_view key) {
  const auto n = meta.integer(key);
  return n && *n > 0 ? static_cast<std::uint32_t>(std::min<std::int64_t>(*n, 0xffffffff)) : 0;
}

result<importance_matrix> read_gguf(std::span<const std::byte> bytes) {
  FLYWHEEL_TRY(const io::archive file, io::archive::open(bytes));
  const io::metadata& meta = file.metadata();
  if (const auto type = meta.string(type_key); !type || *type != type_value)
    return error{errc::malformed, "the GGUF file is no importance matrix: general.type is not 'imatrix'",
                 std::string(type_key)};
  importance_matrix out;
  if (const auto names = meta.strings("imatrix.datasets")) out.datasets.assign(names->begin(), names->end());
  out.chunks = number_of(meta, "imatrix.chunk_count");
  out.chunk_size = number_of(meta, "imatrix.chunk_size");
  for (const io::tensor_info& tensor : file.tensors()) {
    if (!std::string_view(tensor.name).ends_with(sums_suffix)) continue;
    const std::string name = tensor.name.substr(0, tensor.name.size() - sums_suffix.size());
    const io::tensor_info* counts = file.find(name + std::string(counts_suffix));
    if (!counts) return malformed("the tensor has sums but no counts", name);
    importance_entry e;
    e.cols = tensor.dims.cols();
    if (e.cols < 1 || tensor.dims.elements() < 1) return malformed("the tensor has no columns", tensor.name);
    FLYWHEEL_TRY(e.sums, floats_of(file, tensor));
    FLYWHEEL_TRY(e.counts, floats_of(file, *counts));
    if (e.counts.size() != e.sums.size() / static_cast<std::size_t>(e.cols))
      return malformed("there are " + std::to_string(e.counts.size()) + " counts for sums " + tensor.dims.to_string(),
                       name);
    out.entries.emplace(name, std::move(e));
  }
  if (out.entries.empty())
    return error{errc::malformed, "the importance matrix holds no sums (tensors '*.in_sum2')", {}};
  return out;
}

/// i32 entries; per entry i32 name length, name, i32 calls, i32 n, f32 [n] mean squares times calls; then, in files
/// that are not very old, i32 chunks, i32 length, data set. It does not say how many matrices a tensor has: all columns
/// of all of them are one row here, which of() gives back in the same order.
result<importance_matrix> read_dat(std::span<const std::byte> bytes) {
  const io::detail::source_ptr source = io::detail::make_source(bytes);
  io::detail::header_cursor in(*source, bytes.size());
  const auto broken = [&](const char* otherwise) {
    return in.fault() ? *in.fault() : error{errc::malformed, otherwise, {}};
  };
  const auto text = [&](std::string& out, const char* what) {
    std::int32_t length = 0;
    if (!in.number(length, what)) return false;
    if (length < 0 || static_cast<std::uint64_t>(length) > std::min(in.remaining(), io::detail::max_name_bytes))
      return in.fail({errc::malformed, std::string("the length of ") + what + " is not possible", {}});
    out.resize(static_cast<std::size_t>(length));
    return in.read(std::as_writable_bytes(std::span(out.data(), out.size())), what);
  };
  std::int32_t entries = 0;
  if (!in.number(entries, "the number of entries")) return broken("");
  if (entries < 1) return error{errc::malformed, "the file is no importance matrix: it claims no entries", {}};
  importance_matrix out;
  for (std::int32_t i = 0; i < entries; ++i) {
    std::string name;
    std::int32_t calls = 0, n = 0;
    importance_entry e;
    if (!text(name, "the name of a tensor") || !in.number(calls, "an entry") || !in.number(n, "an entry"))
      return broken("");
    if (name.empty() || n < 1 || calls < 0) return malformed("an entry's numbers are not possible", name);
    if (!in.numbers(e.sums, static_cast<std::uint64_t>(n), "the sums of a tensor")) return broken("");
    FLYWHEEL_CHECK(check_values(e.sums, name));
    e.cols = n;
    e.counts = {static_cast<float>(std::max(1, calls))};
    if (!out.entries.emplace(name, std::move(e)).second) return malformed("the tensor is there twice", name);
  }
  if (in.remaining() > 0) {
    std::int32_t chunks = 0;
    std::string dataset;
    if (!in.number(chunks, "the number of chunks")) return broken("");
    out.chunks = static_cast<std::uint32_t>(std::max(0, chunks));
    if (in.remaining() > 0) {
      if (!text(dataset, "the data set's name")) return broken("");
      out.datasets.push_back(std::move(dataset));
    }
  }
  return out;
}

}  // namespace

result<importance_matrix> importance_matrix::read(std::span<const std::byte> bytes) {
  return detail::guarded([&]() -> result<importance_matrix> {
    const std::string_view magic = io::detail::gguf_magic;
    const bool gguf = bytes.size() >= magic.size() &&
                      std::equal(magic.begin(), magic.end(), reinterpret_cast<const char*>(bytes.data()));
    return gguf ? read_gguf(bytes) : read_dat(bytes);
  });
}

result<importance_matrix> importance_matrix::read(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<importance_matrix> {
    FLYWHEEL_TRY(const auto file, mapped_file::open(path));
    auto out = read(file->bytes());
    if (out) return out;
    error e = std::move(out).error();
    e.where = e.where.empty() ? path.string() : path.string() + ": " + e.where;
    return e;
  });
}

result<void> importance_matrix::write(const std::filesystem::path& path) const {
  return detail::guarded([&]() -> result<void> {
    io::metadata meta;
    meta.set(std::string(type_key), std::string(type_value));
    meta.set("imatrix.datasets", datasets);
    meta.set("imatrix.chunk_count", chunks);
    meta.set("imatrix.chunk_size", chunk_size);
    std::vector<io::tensor_plan> plans;
    for (const auto& [name, e] : entries) {
      const auto matrices = static_cast<std::int64_t>(e.counts.size());
      if (e.cols < 1 || matrices < 1 || e.sums.size() != e.counts.size() * static_cast<std::size_t>(e.cols))
        return error{errc::invalid_argument, "the entry's sums, counts and columns do not fit together", name};
      plans.push_back({name + std::string(sums_suffix), dtype::f32, shape{matrices, e.cols}, 0});
      plans.push_back({name + std::string(counts_suffix), dtype::f32, shape{matrices, 1}, 0});
    }
    FLYWHEEL_TRY(io::writer out, io::writer::create(path, io::container::gguf, meta, plans));
    for (const auto& [name, e] : entries) {
      FLYWHEEL_CHECK(out.write(std::as_bytes(std::span(e.sums))));
      FLYWHEEL_CHECK(out.write(std::as_bytes(std::span(e.counts))));
    }
    return out.finish();
  });
}

}  // namespace flywheel::inline v0::quant
