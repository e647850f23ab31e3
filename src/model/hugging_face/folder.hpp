// The files of a Hugging Face folder. In tests and fuzzers they lie in memory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "src/model/hugging_face/json_file.hpp"

namespace flywheel::inline v0::hugging_face {

class folder {
 public:
  /// Opens the weights: model.safetensors.index.json, model.safetensors, or the only *.safetensors file there is.
  /// Errors: not_found (no folder, no config.json, no weights), and those of io::archive::open.
  [[nodiscard]] static result<folder> open(const std::filesystem::path& path);
  /// A PEFT folder: adapter_config.json, adapter_model.safetensors. Errors: not_found, unsupported (weights as a
  /// pickle), and those of io::archive::open.
  [[nodiscard]] static result<folder> open_adapter(const std::filesystem::path& path);
  /// A folder in memory.
  folder(std::filesystem::path name, std::map<std::string, std::string, std::less<>> files, io::archive weights)
      : path_(std::move(name)), files_(std::move(files)), weights_(std::move(weights)) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const io::archive& weights() const noexcept { return weights_; }
  /// "folder/name", for messages.
  [[nodiscard]] std::string where(std::string_view name) const { return (path_ / name).string(); }

  /// All bytes of a file, nothing when there is no such file. Error: unsupported beyond 512 MiB; io.
  [[nodiscard]] result<std::optional<std::string>> read(std::string_view name) const;
  /// A JSON file; null when there is none.
  [[nodiscard]] result<json> read_json(std::string_view name, const json_filter& filter = {}) const;

 private:
  folder() = default;
  [[nodiscard]] static folder on_disk(const std::filesystem::path& path);
  std::filesystem::path path_;
  std::map<std::string, std::string, std::less<>> files_;  // in memory; empty for one on disk
  bool on_disk_ = false;
  io::archive weights_;
};

}  // namespace flywheel::inline v0::hugging_face
