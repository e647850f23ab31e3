// config.json with checked access. The text part of a multimodal model (text_config) comes before the whole.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/hugging_face/json_file.hpp"

namespace flywheel::inline v0::hugging_face {

/// What a configuration means when it leaves a number out, as the family's publisher defines it.
struct default_number {
  std::string_view key;
  double value;
};

/// Keys may name alternatives: "hidden_size|n_embd" is the first that is there. null counts as not there.
/// The first wrong type or range is kept as fault(), and the accessors go on with nothing.
class config {
 public:
  config(json document, std::string where);

  /// architectures[0]; empty when there is none.
  [[nodiscard]] std::string_view architecture() const noexcept;
  void set_defaults(std::span<const default_number> defaults) noexcept { defaults_ = defaults; }

  [[nodiscard]] bool has(std::string_view keys) const noexcept { return !find(keys).is_null(); }
  /// Null when there is none of the keys.
  [[nodiscard]] const json& find(std::string_view keys) const noexcept;
  [[nodiscard]] std::optional<double> number(std::string_view keys) const;
  [[nodiscard]] std::optional<std::uint32_t> count(std::string_view keys) const;  ///< Not negative, 32 bits.
  [[nodiscard]] bool flag(std::string_view keys, bool otherwise) const;
  /// A count that must be there; 0 and a fault otherwise.
  [[nodiscard]] std::uint32_t required(std::string_view keys) const;
  /// layer_types[i] == name for each layer; nothing when the list is not there.
  [[nodiscard]] std::optional<std::vector<bool>> layers_of_type(std::string_view name) const;
  /// n where every n-th layer is of full attention, as layer_types says it (more than there are layers when none is);
  /// `otherwise` without the list. A fault when the layers do not repeat so.
  [[nodiscard]] std::uint32_t full_attention_interval(std::uint32_t otherwise) const;

  // What would change the mathematics: a fault (unsupported) when the key is there and says something else.
  void expect_text(std::string_view key, std::initializer_list<std::string_view> known) const;
  void expect_off(std::string_view key) const;  ///< false
  void expect_full_attention_interval(std::uint32_t n) const;

  [[nodiscard]] std::uint32_t layers() const { return required("num_hidden_layers|n_layer"); }
  [[nodiscard]] std::uint32_t heads() const { return required("num_attention_heads|n_head"); }
  /// head_dim, or the hidden size over the heads.
  [[nodiscard]] std::uint32_t head_dim() const;

  /// rope_parameters (rope_scaling in older files): for layers of full attention, or of sliding attention. Null when
  /// there is none.
  [[nodiscard]] const json& rope() const noexcept;
  [[nodiscard]] const json& sliding_rope() const noexcept;
  /// A number in an object of this file, such as rope()["factor"].
  [[nodiscard]] std::optional<double> number_in(const json& object, std::string_view key) const;
  [[nodiscard]] std::optional<std::uint32_t> count_in(const json& object, std::string_view key) const;
  /// partial_rotary_factor, in rope() or beside it: more than 0, at most 1.
  [[nodiscard]] double rotary_part(double otherwise) const;

  /// Keeps the first failure.
  void fail(errc code, std::string_view key, std::string message) const;
  [[nodiscard]] const std::optional<error>& fault() const noexcept { return fault_; }
  [[nodiscard]] const std::string& where() const noexcept { return where_; }

 private:
  [[nodiscard]] std::optional<double> default_of(std::string_view keys) const noexcept;
  [[nodiscard]] std::optional<std::uint32_t> as_count(std::optional<double> value, std::string_view key) const;

  json document_;
  std::string where_;
  std::span<const default_number> defaults_;
  mutable std::optional<error> fault_;
};

}  // namespace flywheel::inline v0::hugging_face
