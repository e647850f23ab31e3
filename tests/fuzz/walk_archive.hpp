// What the container fuzzers do with an input: open it in two ways and use everything that the archive offers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::test {

/// A finding that is not a crash by itself becomes one.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

/// Returns a checksum of all that was read.
inline std::uint64_t walk(const io::archive& archive) {
  std::uint64_t sum = 0;
  const io::metadata& meta = archive.metadata();
  for (const io::entry& e : meta.entries()) {
    require(meta.find(e.key) == &e.value, "a key is not found again");
    (void)meta.string(e.key);
    (void)meta.integer(e.key);
    (void)meta.number(e.key);
    (void)meta.boolean(e.key);
    (void)meta.strings(e.key);
    (void)meta.integers(e.key);
    (void)meta.floats(e.key);
  }
  std::vector<float> values;
  for (const io::tensor_info& tensor : archive.tensors()) {
    require(archive.find(tensor.name) == &tensor, "a tensor is not found again");
    require(tensor.offset <= archive.file_bytes() && tensor.bytes <= archive.file_bytes() - tensor.offset,
            "a tensor lies outside the file");
    buffer scratch;
    const auto bytes = archive.bytes(tensor, scratch);
    require(bytes && bytes->size() == tensor.bytes, "a tensor's bytes cannot be read");
    for (const std::byte b : *bytes) sum = sum * 31 + std::to_integer<unsigned>(b);
    if (info(tensor.type) == nullptr || tensor.dims.elements() > (1 << 20)) continue;
    require(row_bytes(tensor.type, tensor.dims.cols()) * static_cast<std::size_t>(tensor.dims.rows()) == tensor.bytes ||
                tensor.dims.elements() == 0,
            "a tensor's size does not fit its shape");
    values.resize(static_cast<std::size_t>(tensor.dims.elements()));
    const tensor_view view(tensor.type, tensor.dims, bytes->data());
    const bool decoded = formats::decode(view, values).has_value();
    require(decoded == (formats::find_decoder(tensor.type) != nullptr), "a tensor does not decode");
    archive.release(tensor);
  }
  return sum;
}

inline void open_and_walk(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto in_place = io::archive::open(bytes);
  std::span<const std::byte> source = bytes;
  const auto through_reader = io::archive::open(
      io::reader_callback{size, &source, [](void* user, std::uint64_t offset, std::byte* out, std::size_t n) {
                            const auto& from = *static_cast<std::span<const std::byte>*>(user);
                            require(offset <= from.size() && n <= from.size() - offset, "a read beyond the end");
                            std::memcpy(out, from.data() + offset, n);
                            return true;
                          }});
  require(in_place.has_value() == through_reader.has_value(), "one source opens and the other does not");
  if (in_place) {
    require(walk(*in_place) == walk(*through_reader), "the sources give different bytes");
  } else {
    require(!in_place.error().message.empty() && in_place.error().to_string().find('\n') == std::string::npos,
            "an error without words, or with too many lines");
    require(in_place.error().message == through_reader.error().message, "the sources give different errors");
  }
}

}  // namespace flywheel::test
