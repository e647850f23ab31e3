// Writing GGUF and safetensors files as a stream: never the whole model in memory. The file appears under its name
// only when it is complete (temporary name in the same directory, fsync, rename). A resumable one keeps the tensors
// that are complete when it is interrupted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::io {

/// What will be written: declared before the data. `bytes` is needed for opaque types only (0: computed).
struct tensor_plan {
  std::string name;
  dtype type = dtype::f32;
  shape dims;
  std::uint64_t bytes = 0;
};

/// Bytes before the first tensor of a GGUF file with these metadata and tensors, whatever their types.
[[nodiscard]] FLYWHEEL_API std::uint64_t gguf_header_bytes(const metadata& meta, std::span<const tensor_info> tensors);

/// A file being written. Not thread-safe. Destroying it before finish() removes the temporary file.
class FLYWHEEL_API writer {
 public:
  /// Writes the header. `kind` safetensors keeps only string metadata. GGUF uses version 3 and
  /// `general.alignment` from the metadata (32 without).
  /// Errors: invalid_argument (duplicate or empty names, bad alignment), unsupported (a dtype the container does not
  /// have), io.
  [[nodiscard]] static result<writer> create(const std::filesystem::path& path, io::container kind,
                                             const metadata& meta, std::span<const tensor_plan> tensors);
  /// The same, but what is written stays in `path`.partial when the writer is destroyed before finish() or its process
  /// ends, and tensors that are complete there are kept if that file was begun with the same plan, metadata and key and
  /// their checksums (in `path`.partial.journal) are right; otherwise all starts anew. `key` stands for what the data
  /// depends on; one line. Errors also: io (another process writes it), invalid_argument (there is a file not its own).
  [[nodiscard]] static result<writer> resume(const std::filesystem::path& path, io::container kind,
                                             const metadata& meta, std::span<const tensor_plan> tensors,
                                             std::string_view key);
  writer(writer&&) noexcept;
  writer& operator=(writer&&) noexcept;
  ~writer();

  /// Appends bytes to the current tensor; tensors come in the declared order and may be written in pieces. A piece
  /// must not cross into the next tensor. Padding is the writer's work.
  [[nodiscard]] result<void> write(std::span<const std::byte> bytes);
  /// Whether a tensor is complete, by its place in the plan.
  [[nodiscard]] bool complete(std::size_t tensor) const noexcept;
  /// Makes it the current tensor, to be written from its start; afterwards the next incomplete one is. Of a resumable
  /// writer only. Errors: invalid_argument, io.
  [[nodiscard]] result<void> select(std::size_t tensor);
  /// The file as it is: `path`.partial of a resumable writer, where complete tensors can be read. Flushes. Error: io.
  [[nodiscard]] result<std::filesystem::path> partial();
  /// Removes what a resumable writer would keep: going on makes no sense.
  void abandon() noexcept;
  /// Replaces texts of the header (strings of the metadata) by others of the same length that were not known when it
  /// was written, wherever they are. Not of a resumable writer. Errors: invalid_argument (other lengths, such a
  /// writer), io.
  [[nodiscard]] result<void> amend(std::span<const std::pair<std::string, std::string>> texts);
  /// All data written: fsync, rename. Error: invalid_argument when bytes are missing; io.
  [[nodiscard]] result<void> finish();

 private:
  struct state;
  explicit writer(std::unique_ptr<state> s) noexcept;
  static result<writer> begin(const std::filesystem::path& path, io::container kind, const metadata& meta,
                              std::span<const tensor_plan> tensors, const std::string_view* key);
  std::unique_ptr<state> state_;
};

}  // namespace flywheel::inline v0::io
