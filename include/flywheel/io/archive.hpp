// A model file, or the parts of a split one, opened for reading: metadata and named tensors. One type for GGUF and
// safetensors, so that nothing above this room depends on the container.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/mapped_file.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::io {

/// Where one tensor lies.
struct tensor_info {
  std::string name;
  dtype type = dtype::f32;   ///< May be an id that flywheel::info() does not know: opaque.
  shape dims;                ///< Outermost first: a GGUF tensor with ne = [512, 8] is {8, 512}.
  std::uint64_t offset = 0;  ///< Bytes from the start of its part.
  std::uint64_t bytes = 0;   ///< Stored bytes. For opaque types: up to the next tensor or the end.
  std::uint32_t part = 0;    ///< Which file of a split model.
};

/// The bytes of one part: a mapped file, the host's memory, a callback, or what is computed on reading.
class FLYWHEEL_API byte_source {
 public:
  virtual ~byte_source();
  [[nodiscard]] virtual std::uint64_t size() const noexcept = 0;
  /// All bytes, when they are addressable without copying; empty otherwise.
  [[nodiscard]] virtual std::span<const std::byte> mapped() const noexcept { return {}; }
  /// Copies size() bytes at most: exactly out.size() bytes from `offset`. Thread-safe.
  [[nodiscard]] virtual result<void> read(std::uint64_t offset, std::span<std::byte> out) const = 0;
  /// The range is not needed again soon.
  virtual void release(std::uint64_t offset, std::uint64_t length) const noexcept {
    (void)offset;
    (void)length;
  }
};

/// A host's own reader: reads out.size() bytes at `offset`, returns false on failure. Called from one thread at a time
/// while opening and possibly from several while loading.
struct reader_callback {
  std::uint64_t size = 0;
  void* user = nullptr;
  bool (*read)(void* user, std::uint64_t offset, std::byte* out, std::size_t length) = nullptr;
};

enum class container : std::uint8_t { gguf, safetensors };

/// The parts of an archive that a program puts together itself: tensors of other archives under other names, and
/// tensors that a source of its own computes when they are read.
struct archive_content {
  io::metadata metadata;
  std::vector<tensor_info> tensors;  ///< Each lies within sources[part].
  std::vector<std::shared_ptr<const byte_source>> sources;
  std::filesystem::path path;    ///< For messages; may be empty.
  std::uint64_t file_bytes = 0;  ///< Of the files behind it, and
  std::uint32_t files = 1;       ///< their number.
};

/// Immutable after opening; a cheap handle, copied by value; thread-safe.
class FLYWHEEL_API archive {
 public:
  archive() = default;

  /// Opens a GGUF or safetensors file by its content; for the first file of a split GGUF, or a
  /// `*.safetensors.index.json`, all parts. Checks everything before anything is allocated by it.
  /// Errors: not_found, io, malformed, unsupported (version), out_of_memory.
  [[nodiscard]] static result<archive> open(const std::filesystem::path& path);
  /// Reads from the host's memory, which must stay valid as long as the archive and what was loaded from it.
  [[nodiscard]] static result<archive> open(std::span<const std::byte> bytes);
  [[nodiscard]] static result<archive> open(const reader_callback& reader);
  /// An archive without a file of its own, with GGUF's names and metadata. Errors: malformed (a tensor outside its
  /// source or with another number of bytes than its shape takes, two of one name), out_of_memory.
  [[nodiscard]] static result<archive> assemble(archive_content content);

  [[nodiscard]] io::container container() const noexcept;
  [[nodiscard]] std::uint32_t version() const noexcept;                 ///< GGUF: 2 or 3. safetensors: 0.
  [[nodiscard]] const io::metadata& metadata() const noexcept;          ///< safetensors: the strings of __metadata__.
  [[nodiscard]] std::span<const tensor_info> tensors() const noexcept;  ///< In file order.
  /// Null when there is no such tensor.
  [[nodiscard]] const tensor_info* find(std::string_view name) const noexcept;
  [[nodiscard]] std::uint64_t file_bytes() const noexcept;  ///< Of all parts.
  [[nodiscard]] std::uint32_t parts() const noexcept;       ///< Files.
  /// Where tensors lie: tensor_info::part is an index into these.
  [[nodiscard]] std::span<const std::shared_ptr<const byte_source>> sources() const noexcept;
  [[nodiscard]] const std::filesystem::path& path() const noexcept;  ///< Empty when not opened from a path.

  /// The tensor in place, without copying. Errors: unsupported for opaque types and for callback sources.
  [[nodiscard]] result<tensor_view> view(const tensor_info& info) const;
  /// The stored bytes, in place when the source is addressable, else read into `scratch`. Opaque types work.
  [[nodiscard]] result<std::span<const std::byte>> bytes(const tensor_info& info, buffer& scratch,
                                                         std::pmr::memory_resource* memory = nullptr) const;
  /// Copies part of the stored bytes: `out.size()` bytes from `offset` within the tensor.
  [[nodiscard]] result<void> read(const tensor_info& info, std::uint64_t offset, std::span<std::byte> out) const;
  /// The tensor's pages are not needed again soon.
  void release(const tensor_info& info) const noexcept;

  struct state;
  explicit archive(std::shared_ptr<const state> s) noexcept : state_(std::move(s)) {}

 private:
  std::shared_ptr<const state> state_;
};

}  // namespace flywheel::inline v0::io
