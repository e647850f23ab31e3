// Writing GGUF and safetensors files as a stream: never the whole model in memory. The file appears under its name
// only when it is complete (temporary name in the same directory, fsync, rename).
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
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

/// A file being written. Not thread-safe. Destroying it before finish() removes the temporary file.
class FLYWHEEL_API writer {
 public:
  /// Writes the header. `kind` safetensors keeps only string metadata. GGUF uses version 3 and
  /// `general.alignment` from the metadata (32 without).
  /// Errors: invalid_argument (duplicate or empty names, bad alignment), unsupported (a dtype the container does not
  /// have), io.
  [[nodiscard]] static result<writer> create(const std::filesystem::path& path, io::container kind,
                                             const metadata& meta, std::span<const tensor_plan> tensors);
  writer(writer&&) noexcept;
  writer& operator=(writer&&) noexcept;
  ~writer();

  /// Appends bytes to the current tensor; tensors come in the declared order and may be written in pieces. A piece
  /// must not cross into the next tensor. Padding is the writer's work.
  [[nodiscard]] result<void> write(std::span<const std::byte> bytes);
  /// All data written: fsync, rename. Error: invalid_argument when bytes are missing; io.
  [[nodiscard]] result<void> finish();

 private:
  struct state;
  explicit writer(std::unique_ptr<state> s) noexcept;
  std::unique_ptr<state> state_;
};

}  // namespace flywheel::inline v0::io
