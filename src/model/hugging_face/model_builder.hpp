// The translated model while it is made: metadata and tensors by GGUF name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/hugging_face/computed_tensors.hpp"
#include "src/model/hugging_face/config.hpp"
#include "src/model/hugging_face/folder.hpp"

namespace flywheel::inline v0::hugging_face {

struct family;
struct placed_tensor;

/// What a row of a table says about one tensor.
struct tensor_names {
  std::string first = {}, second = {};  ///< GGUF names; the second is empty unless the tensor is cut in two.
  std::int64_t layer = -1;
  std::int64_t expert = -1;
};

class model_builder {
 public:
  model_builder(const folder& from, const hugging_face::config& config, const family& f);

  [[nodiscard]] const hugging_face::config& config() const noexcept { return config_; }
  [[nodiscard]] const folder& files() const noexcept { return folder_; }
  [[nodiscard]] const hugging_face::family& family() const noexcept { return family_; }

  /// Sets "<architecture>.<key>".
  void set(std::string_view key, io::value value) { metadata.set(prefix_ + std::string(key), std::move(value)); }
  void set_count(std::string_view key, std::int64_t n) { set(key, static_cast<std::uint32_t>(n)); }
  void set_number(std::string_view key, double x) { set(key, static_cast<float>(x)); }

  /// The tensor under its new name; in f32 where GGUF wants that.
  [[nodiscard]] result<void> add(std::string name, const io::tensor_info& tensor);
  [[nodiscard]] result<void> add(std::string name, const io::tensor_info& tensor, const shape& dims);
  /// Rows of tensors of one type. The number of their elements is that of `dims`.
  [[nodiscard]] result<void> add(std::string name, const shape& dims, gathered_rows rows);
  /// What `tensor` computes, in rows of `cols` elements: whole blocks of `type`, and not 0.
  void add_computed(std::string name, dtype type, const shape& dims, std::int64_t cols,
                    std::unique_ptr<io::computed_tensor> tensor);
  /// f32 values that no file has; not empty.
  void add_values(std::string name, std::vector<float> values);
  /// From now on tensors are not added, but written down; of computed ones nothing. `into` outlives it.
  void record(std::vector<placed_tensor>& into) noexcept { record_ = &into; }
  /// One of the matrices that make a tensor [experts, ...].
  [[nodiscard]] result<void> add_expert(const std::string& name, std::int64_t number, const io::tensor_info& tensor);

  /// Of a tensor of the folder whose name differs in its ending; null when there is none.
  [[nodiscard]] const io::tensor_info* sibling(const io::tensor_info& tensor, std::string_view ending,
                                               std::string_view other) const;
  /// malformed, about a tensor of the folder.
  [[nodiscard]] error wrong(const io::tensor_info& tensor, std::string message) const;

  /// What a weight may be stored as: f32, f16 or bf16, not empty. Errors: unsupported, malformed.
  [[nodiscard]] result<void> check_weight(const io::tensor_info& tensor) const;

  /// Of token_embd.weight. Error: malformed when there is no such matrix, or one that does not fit config.json.
  [[nodiscard]] result<std::int64_t> embedding_rows() const;

  /// Joins the experts and puts the tensors in order. `vocabulary` and the rest of the metadata must be set.
  [[nodiscard]] result<io::archive> finish();

  io::metadata metadata;

 private:
  const folder& folder_;
  const hugging_face::config& config_;
  const hugging_face::family& family_;
  std::string prefix_;
  std::vector<io::tensor_info> tensors_;  // part: that of the folder's weights, or one beyond for computed ones
  std::shared_ptr<io::computed_source> computed_;
  std::map<std::string, std::map<std::int64_t, io::tensor_info>> experts_;
  std::vector<placed_tensor>* record_ = nullptr;
};

}  // namespace flywheel::inline v0::hugging_face
