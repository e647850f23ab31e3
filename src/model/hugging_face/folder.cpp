#include "src/model/hugging_face/folder.hpp"

#include <algorithm>
#include <system_error>
#include <vector>

#include "flywheel/core/mapped_file.hpp"
#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr std::size_t max_file_bytes = std::size_t{512} << 20;
constexpr const char* usual_weights[] = {"model.safetensors.index.json", "model.safetensors"};

bool is_file(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

result<std::filesystem::path> find_weights(const std::filesystem::path& path) {
  for (const char* name : usual_weights)
    if (is_file(path / name)) return path / name;
  std::vector<std::filesystem::path> found;
  std::error_code failed;
  for (std::filesystem::directory_iterator it(path, failed), end; !failed && it != end; it.increment(failed))
    if (it->path().extension() == ".safetensors") found.push_back(it->path());
  if (failed) return error{errc::io, "cannot list the folder: " + failed.message(), path.string()};
  if (found.size() == 1) return found.front();
  std::sort(found.begin(), found.end());
  if (found.empty())
    return error{errc::not_found,
                 "the folder has no weights: neither model.safetensors nor model.safetensors.index.json",
                 path.string()};
  return error{errc::not_found,
               "the folder has " + std::to_string(found.size()) + " safetensors files (" +
                   found.front().filename().string() + ", ...) but no model.safetensors.index.json that joins them",
               path.string()};
}

result<io::archive> open_safetensors(const std::filesystem::path& path) {
  FLYWHEEL_TRY(io::archive file, io::archive::open(path));
  if (file.container() != io::container::safetensors)
    return error{errc::malformed, "the file is not in safetensors format", path.string()};
  return file;
}

}  // namespace

folder folder::on_disk(const std::filesystem::path& path) {
  folder f;
  f.path_ = path.has_filename() ? path : path.parent_path();  // "folder/" is "folder"
  f.on_disk_ = true;
  return f;
}

result<folder> folder::open(const std::filesystem::path& path) {
  folder f = on_disk(path);
  if (!is_file(path / "config.json"))
    return error{errc::not_found, "the folder has no config.json, so it is not a Hugging Face model", path.string()};
  FLYWHEEL_TRY(const std::filesystem::path weights, find_weights(path));
  FLYWHEEL_TRY(f.weights_, open_safetensors(weights));
  return f;
}

result<folder> folder::open_adapter(const std::filesystem::path& path) {
  folder f = on_disk(path);
  if (!is_file(path / "adapter_config.json"))
    return error{errc::not_found, "the folder has no adapter_config.json, so it is not a PEFT adapter", path.string()};
  const std::filesystem::path weights = path / "adapter_model.safetensors";
  if (!is_file(weights) && is_file(path / "adapter_model.bin"))
    return error{errc::unsupported,
                 "the weights are a pickle, which can run any program when it is read; save the adapter again with "
                 "safe_serialization=True",
                 (path / "adapter_model.bin").string()};
  FLYWHEEL_TRY(f.weights_, open_safetensors(weights));
  return f;
}

result<std::optional<std::string>> folder::read(std::string_view name) const {
  if (!on_disk_) {
    const auto found = files_.find(name);
    return found == files_.end() ? std::optional<std::string>{} : std::optional<std::string>(found->second);
  }
  auto file = mapped_file::open(path_ / name);
  if (!file && file.error().code == errc::not_found) return std::optional<std::string>{};
  if (!file) return std::move(file).error();
  const std::span<const std::byte> bytes = (*file)->bytes();
  if (bytes.size() > max_file_bytes) return error{errc::unsupported, "the file is longer than 512 MiB", where(name)};
  return std::optional<std::string>(std::in_place, reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

result<json> folder::read_json(std::string_view name, const json_filter& filter) const {
  FLYWHEEL_TRY(const std::optional<std::string> text, read(name));
  if (!text) return json();
  return parse_json(*text, where(name), filter);
}

}  // namespace flywheel::inline v0::hugging_face
