// What the tensors of an architecture are called in Hugging Face folders and in GGUF, in both directions, and how their
// elements change places: the families' tables, asked for one tensor at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "flywheel/io/metadata.hpp"
#include "src/model/hugging_face/config.hpp"
#include "src/model/hugging_face/family.hpp"

namespace flywheel::inline v0::hugging_face {

/// Parts of multimodal models that are not the text model, and what training left behind.
[[nodiscard]] bool is_foreign(std::string_view name) noexcept;
/// The name as the tables have it: "model.language_model.layers.0.x" is "layers.0.x".
[[nodiscard]] std::string plain_name(std::string_view full);

struct name_match {
  const tensor_row* row = nullptr;  ///< Null: the family has no such tensor.
  tensor_names names;
};
/// By plain name.
[[nodiscard]] name_match find_row(const family& f, std::string_view plain);

/// What a tensor of GGUF is called in a folder; in names of single experts "{}" is the expert's number.
struct stored_name {
  const tensor_row* row = nullptr;  ///< Null: the family has no such tensor.
  std::string plain = {};           ///< "layers.0.self_attn.q_proj.weight"
  std::string full = {};            ///< With what models of the family have in front: "model.layers..."
};
[[nodiscard]] stored_name find_stored_name(const family& f, std::string_view gguf);

/// "model.layers.0.self_attn.q_proj.weight" for the tensor "blk.0.attn_q.weight" of a GGUF architecture; empty when it
/// has no such tensor, or no family has the architecture.
[[nodiscard]] std::string hugging_face_name(std::string_view architecture, std::string_view gguf);

/// What one tensor of a folder becomes.
struct placed_tensor {
  std::string name;
  shape dims;
  std::int64_t expert = -1;                                         ///< Of one expert: its number. `dims` are its own.
  std::function<std::int64_t(std::int64_t)> row = {}, column = {};  ///< As gathered_rows has them.
  std::function<float(float)> value = {}, inverse = {};
};

/// A family with the numbers of one model.
class layout {
 public:
  /// Of a GGUF model, by its architecture and numbers. Error: unsupported (no family has this architecture).
  [[nodiscard]] static result<layout> of(const io::metadata& model, const std::string& where);
  layout(const hugging_face::family& f, hugging_face::config c) : family_(&f), config_(std::move(c)) {}

  [[nodiscard]] const hugging_face::family& family() const noexcept { return *family_; }
  [[nodiscard]] const hugging_face::config& config() const noexcept { return config_; }
  /// What a tensor of this plain name and shape becomes; empty when the model leaves it out. Errors: unsupported (no
  /// such tensor; one that does not keep its elements, such as MXFP4), malformed (the shape).
  [[nodiscard]] result<std::vector<placed_tensor>> place(std::string_view plain, const shape& dims) const;

 private:
  const hugging_face::family* family_;
  hugging_face::config config_;
};

/// back[f(i)] = i for i < n: the way back of row or column. Error: internal (f is no permutation).
[[nodiscard]] result<std::vector<std::int64_t>> inverse_of(const std::function<std::int64_t(std::int64_t)>& f,
                                                           std::int64_t n);

}  // namespace flywheel::inline v0::hugging_face
