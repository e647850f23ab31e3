// PEFT folders (adapter_config.json, adapter_model.safetensors) as archives in the form of open_adapter_archive.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/model/adapter_archive.hpp"
#include "src/model/hugging_face/config.hpp"
#include "src/model/hugging_face/folder.hpp"
#include "src/text/regex.hpp"

namespace flywheel::inline v0::hugging_face {

inline constexpr std::string_view adapter_config_file = "adapter_config.json";
inline constexpr std::string_view adapter_weights_file = "adapter_model.safetensors";

/// What adapter_config.json says about the factors of products.
class lora_config {
 public:
  /// Errors: malformed, unsupported, naming the key.
  [[nodiscard]] static result<lora_config> read(const folder& from);

  /// Alpha of the whole adapter as GGUF means it: the factor of a product is alpha / rank.
  [[nodiscard]] double alpha() const noexcept;
  /// What a module's product is multiplied with. `module` is its name in the model, "model.layers.0.self_attn.q_proj".
  /// Error: malformed (the rank is not the configuration's).
  [[nodiscard]] result<double> factor(std::string_view module, std::int64_t rank) const;
  /// Whether modules_to_save names it.
  [[nodiscard]] bool saves(std::string_view module) const noexcept;

 private:
  /// A number for the modules whose name ends so.
  struct pattern {
    std::string text;
    std::optional<text::regex> expression;  ///< None: `text` as it is.
    double value = 0;
  };
  [[nodiscard]] static result<std::vector<pattern>> read_patterns(const json& all, std::string_view key,
                                                                  const std::vector<std::string>& order,
                                                                  const std::string& where);
  [[nodiscard]] static result<double> find(const std::vector<pattern>& patterns, std::string_view module,
                                           double otherwise, const std::string& where);

  std::string where_;
  double rank_ = 8, alpha_ = 8;
  bool rank_stabilized_ = false;
  std::vector<pattern> ranks_, alphas_;
  std::vector<std::string> saved_;
};

/// Errors: malformed, unsupported, naming the file and the key or the tensor.
[[nodiscard]] result<io::archive> translate_adapter(const folder& from, const io::archive& base);

/// Writes a PEFT folder; `changes` are those of adapter_changes. Errors: as write_adapter has them.
[[nodiscard]] result<void> write_adapter_folder(const io::archive& adapter, const io::archive& base,
                                                std::span<const adapter_change> changes,
                                                const std::filesystem::path& out);

}  // namespace flywheel::inline v0::hugging_face
