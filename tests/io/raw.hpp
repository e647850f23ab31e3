// Builds files byte by byte, independently of the library's writers, so that they can be wrong in every way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/io/archive.hpp"

namespace flywheel::test {

/// Little-endian bytes, appended.
class raw {
 public:
  template <class T>
  raw& number(T v) {
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bytes_.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(v) >> (8 * i)));
    return *this;
  }
  raw& u8(std::uint8_t v) { return number(v); }
  raw& u16(std::uint16_t v) { return number(v); }
  raw& u32(std::uint32_t v) { return number(v); }
  raw& u64(std::uint64_t v) { return number(v); }
  raw& plain(std::string_view text) {
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  /// GGUF: u64 length, then bytes.
  raw& text(std::string_view v) { return u64(v.size()).plain(v); }
  raw& zeros(std::size_t n) {
    bytes_.resize(bytes_.size() + n);
    return *this;
  }
  raw& pad(std::size_t alignment) {
    while (bytes_.size() % alignment != 0) u8(0);
    return *this;
  }
  raw& append(const raw& other) {
    bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
    return *this;
  }

  // GGUF pieces.
  raw& gguf(std::uint64_t tensors, std::uint64_t keys, std::uint32_t version = 3) {
    return plain("GGUF").u32(version).u64(tensors).u64(keys);
  }
  raw& key_text(std::string_view key, std::string_view value) { return text(key).u32(8).text(value); }
  raw& key_u32(std::string_view key, std::uint32_t value) { return text(key).u32(4).u32(value); }
  raw& key_u16(std::string_view key, std::uint16_t value) { return text(key).u32(2).u16(value); }
  /// dims innermost first, as in the file.
  raw& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t d : dims) u64(d);
    return u32(type).u64(offset);
  }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] std::vector<std::byte>& mutable_bytes() { return bytes_; }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  void save(const std::filesystem::path& path) const {
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes_.data()), static_cast<std::streamsize>(bytes_.size()));
  }

 private:
  std::vector<std::byte> bytes_;
};

/// A safetensors file with this header text and this much data.
inline raw raw_safetensors(std::string_view json, std::size_t data) {
  raw r;
  r.u64(json.size()).plain(json).zeros(data);
  return r;
}

/// A host's reader over bytes that counts its calls and can fail at the nth.
struct counting_reader {
  std::span<const std::byte> bytes;
  std::size_t calls = 0;
  std::size_t read_bytes = 0;
  std::size_t fail_at = static_cast<std::size_t>(-1);  ///< Number of the call that fails, from 0.

  [[nodiscard]] io::reader_callback callback() {
    return {bytes.size(), this, [](void* user, std::uint64_t offset, std::byte* out, std::size_t n) {
              auto& self = *static_cast<counting_reader*>(user);
              if (self.calls++ == self.fail_at || offset > self.bytes.size() || n > self.bytes.size() - offset)
                return false;
              std::memcpy(out, self.bytes.data() + offset, n);
              self.read_bytes += n;
              return true;
            }};
  }
};

}  // namespace flywheel::test
