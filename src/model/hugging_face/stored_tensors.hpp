// The way back: tensors of an archive with GGUF's names as a Hugging Face folder has them.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/io/archive.hpp"
#include "src/io/computed_tensors.hpp"
#include "src/model/hugging_face/names.hpp"

namespace flywheel::inline v0::hugging_face {

/// Collects tensors under their names in the folder; those whose elements change places are computed when they are
/// read. Not thread-safe.
class stored_tensors {
 public:
  /// All of them outlive it.
  stored_tensors(const io::archive& from, const layout& names)
      : from_(from), names_(names), computed_(std::make_shared<io::computed_source>()) {}

  /// Where elements of a weight of GGUF were in its folder. Row r of the folder's tensor is row `rows[r]` here; empty:
  /// the same. Errors: unsupported (what only part of a tensor becomes, or what no family says).
  struct way_back {
    stored_name name;
    bool experts = false;  ///< One tensor for each matrix, "{}" in its name.
    shape dims;            ///< In the folder; of experts: of one.
    std::vector<std::int64_t> rows, columns;
    std::function<float(float)> value = {};
  };
  [[nodiscard]] result<way_back> find(std::string_view weight, const shape& dims) const;

  /// A tensor of the archive, `how` applied where it says something.
  [[nodiscard]] result<void> add(std::string name, const io::tensor_info& tensor, const shape& dims,
                                 std::vector<std::int64_t> rows = {}, std::vector<std::int64_t> columns = {},
                                 std::function<float(float)> value = {});
  /// Matrices of [experts, n, k], one under each name: "{}" is its number.
  void add_experts(const std::string& name, const io::tensor_info& tensor);
  /// [n, k] as [k, n].
  void add_transposed(std::string name, const io::tensor_info& tensor);
  /// A whole weight, in front of whose name `prefix` comes. Returns the name.
  [[nodiscard]] result<std::string> add_weight(const std::string& prefix, const io::tensor_info& tensor);

  [[nodiscard]] result<io::archive> finish();

 private:
  void add_computed(std::string name, dtype type, const shape& dims, std::int64_t cols,
                    std::unique_ptr<io::computed_tensor> tensor);
  const io::archive& from_;
  const layout& names_;
  std::shared_ptr<io::computed_source> computed_;
  std::vector<io::tensor_info> tensors_;
};

/// "{}" of a name replaced.
[[nodiscard]] std::string with_number(std::string name, std::int64_t number);

/// Writes tensors as safetensors in these types, with the metadata that Hugging Face's own have. Errors: those of
/// convert().
[[nodiscard]] result<void> write_safetensors(const io::archive& from, const std::filesystem::path& out,
                                             std::span<const dtype> types, const context& ctx, const control& control);

/// A folder that appears under its name when it is complete. Error of opening it: invalid_argument (`out` is there
/// and no empty folder), io.
class new_folder {
 public:
  [[nodiscard]] static result<new_folder> create(const std::filesystem::path& out);
  new_folder(new_folder&& other) noexcept;
  new_folder& operator=(new_folder&&) = delete;
  ~new_folder();
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return temporary_; }
  [[nodiscard]] result<void> write(std::string_view name, std::string_view text) const;
  [[nodiscard]] result<void> finish();

 private:
  explicit new_folder(std::filesystem::path out);
  std::filesystem::path out_, temporary_;
};

}  // namespace flywheel::inline v0::hugging_face
