// Adapter files by path, whatever they are, in one form; and the way back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0 {

/// A GGUF adapter, or a PEFT folder (adapter_config.json, adapter_model.safetensors) translated by the rules of the
/// base's architecture, as an archive of one form. Metadata: general.type = "adapter", adapter.type = "lora",
/// general.architecture, general.name, adapter.lora.alpha (f32; the factor of a product is alpha / its rank, 1 where
/// alpha is 0). Tensors, where W is a tensor of the base:
///
///     W.lora_a [r, k], W.lora_b [n, r]                      of a product's weight, per expert [experts, ...]
///     token_embd.weight.lora_a [vocab, r], .lora_b [n, r]   of embedding rows
///     output.weight.lora_a, .lora_b                         of the output head, also where the base's is token_embd
///     W.lora_magnitude [n]                                  of DoRA
///     W                                                     in place of the base's (modules_to_save)
///
/// rsLoRA, rank_pattern and alpha_pattern are folded into B where alpha / rank is not theirs. Rows are in the base's
/// GGUF order. Nothing of the tensors is read here. Errors: those of io::archive::open; malformed, unsupported, naming
/// the file and the key or the tensor (PEFT types other than LORA, a bias that was trained, lora_bias, modules that the
/// architecture does not have; a factor without its other one).
[[nodiscard]] FLYWHEEL_API result<io::archive> open_adapter_archive(const std::filesystem::path& path,
                                                                    const io::archive& base);

/// What an adapter does to one tensor of its base.
struct adapter_change {
  enum class kind : std::uint8_t {
    product,    ///< W += factor B A, in products with W.
    embedding,  ///< The same for the rows that tokens become.
    replace,    ///< W is another.
  };
  std::string weight;  ///< W's name in the base ("token_embd.weight" for an output head that is tied).
  kind what = kind::product;
  bool head = false;      ///< Of the output head: where that is tied, embedding rows stay.
  std::string a, b;       ///< Tensors of the adapter; of replace: a alone.
  std::string magnitude;  ///< Of DoRA; empty: none.
  std::int64_t rank = 0;
  double factor = 1;  ///< alpha / rank.
};

/// Checks an archive of that form against its base. Errors: invalid_argument naming the tensor and both files (another
/// architecture, no such tensor, other extents), malformed (factors that do not belong together, no change at all),
/// unsupported (a base whose scales were moved or that was rotated when it was quantized: quant/transform.hpp).
[[nodiscard]] FLYWHEEL_API result<std::vector<adapter_change>> adapter_changes(const io::archive& adapter,
                                                                               const io::archive& base);

/// Writes an archive of that form: to a GGUF file, or, where `out` does not end with .gguf, to a PEFT folder, with the
/// names and rows that Hugging Face models of the base's architecture have. Complete or not at all. Errors: unsupported
/// (what the target cannot say: DoRA and replaced tensors in GGUF are written, and read here, under the names above),
/// invalid_argument (`out` exists and is something else), io, and those of reading.
[[nodiscard]] FLYWHEEL_API result<void> write_adapter(const io::archive& adapter, const io::archive& base,
                                                      const std::filesystem::path& out);

}  // namespace flywheel::inline v0
