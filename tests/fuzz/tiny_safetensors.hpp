// For the fuzzers of folders: a small file of weights, and what must hold of an archive that came of it.
#pragma once

#include <initializer_list>
#include <string>

#include "fuzz/walk_archive.hpp"

namespace flywheel::test {

struct tiny_declaration {
  const char* name;
  const char* type;  ///< As safetensors have it.
  std::initializer_list<int> dims;
};

/// The bytes of a safetensors file; all data are the same byte.
inline std::string tiny_safetensors(std::initializer_list<tiny_declaration> tensors) {
  std::string header = "{", data;
  for (const tiny_declaration& t : tensors) {
    std::size_t bytes = t.type[0] == 'U' ? 1 : t.type[1] == '3' ? 4 : 2;
    std::string dims;
    for (const int d : t.dims) {
      bytes *= static_cast<std::size_t>(d);
      dims += (dims.empty() ? "" : ",") + std::to_string(d);
    }
    header += (header.size() > 1 ? ",\"" : "\"") + std::string(t.name) + "\":{\"dtype\":\"" + t.type +
              "\",\"shape\":[" + dims + "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + bytes) + "]}";
    data.append(bytes, '\x3C');
  }
  header += "}";
  std::string file(8, '\0');
  for (unsigned i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> 8 * i & 255);
  return file + header + data;
}

/// An error says something, and of an archive all bytes can be read.
inline void check_translated(const result<io::archive>& made) {
  if (!made) {
    require(!made.error().message.empty() && made.error().to_string().find('\n') == std::string::npos,
            "an error without words, or with too many lines");
    require(made.error().code != errc::internal, "an exception came through");
    return;
  }
  buffer scratch;
  for (const io::tensor_info& t : made->tensors()) {
    require(made->find(t.name) == &t, "a tensor is not found again");
    const auto bytes = made->bytes(t, scratch);
    require(bytes && bytes->size() == t.bytes, "a tensor's bytes cannot be read");
    std::byte last{};
    if (t.bytes > 0) require(made->read(t, t.bytes - 1, {&last, 1}).has_value(), "the last byte cannot be read");
    made->release(t);
  }
}

}  // namespace flywheel::test
