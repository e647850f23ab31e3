// Models that compute the same with weights that are easier to round: scales moved between neighbouring layers (AWQ,
// SmoothQuant) and rotations of the residual stream and of heads (QuaRot). Each takes an archive and returns one, whose
// changed tensors are f32 and computed when they are read; nothing runs differently later. What can be changed is read
// from the model's graph. Metadata says what was done (flywheel.quantize.scaled, .rotated, .rotated_heads), because
// adapters of the original no longer fit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/quant/calibration.hpp"
#include "flywheel/quant/recipe.hpp"

namespace flywheel::inline v0::quant {

/// Activations that channel scales can be moved across: what makes them is divided, what reads them is multiplied.
struct channel_link {
  enum class kind : std::uint8_t {
    norm,    ///< A norm's weight; its readers are products and experts.
    values,  ///< Rows of attn_v; read by attn_output. Heads of one kv head share scales.
    hidden,  ///< Rows of ffn_up, which a gate multiplies; read by ffn_down.
  };
  /// Rows of a matrix, or elements of a vector, from `first` on.
  struct part {
    std::string tensor;
    std::int64_t first = 0;
  };
  kind of = kind::norm;
  std::int64_t channels = 0;   ///< Of what is divided: one scale each.
  std::int64_t head_dim = 0;   ///< values only.
  std::int64_t shared_by = 1;  ///< values: how many heads read each kv head.
  std::vector<part> made_by;   ///< Weight, and bias where there is one.
  std::vector<std::string> read_by;

  /// Which scale column c of a reader takes.
  [[nodiscard]] std::int64_t channel_of(std::int64_t column) const noexcept {
    return of == kind::values ? column / (head_dim * shared_by) * head_dim + column % head_dim : column;
  }
};

/// All links of a model, in the order of its graph. Norms and products that share tensors with others (a tied output
/// head), or whose result goes elsewhere too, have none; nor has the norm whose result embeddings are made of. Errors:
/// those of reading the architecture.
[[nodiscard]] FLYWHEEL_API result<std::vector<channel_link>> find_channel_links(const io::archive& model);

struct channel_scales {
  channel_link link;
  std::vector<float> scales;  ///< [channels], positive.
};
/// Errors: invalid_argument (a scale that is not positive and finite; sizes that do not fit each other or the tensors),
/// not_found (a tensor).
[[nodiscard]] FLYWHEEL_API result<io::archive> move_scales(const io::archive& model,
                                                           const std::vector<channel_scales>& links);

/// SmoothQuant (Xiao et al. 2023): s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) over a link's readers, so that int8
/// activations lose less. `peaks`: max|x_j| of what goes into each reader, by tensor name; links without are left.
/// Errors: invalid_argument (alpha outside 0 .. 1, sizes), those of reading.
[[nodiscard]] FLYWHEEL_API result<io::archive> smooth(
    const io::archive& model, const std::map<std::string, std::vector<float>, std::less<>>& peaks, float alpha = 0.5F);

struct awq_options {
  /// The type that a tensor will get; absent or a type that cannot be made: not looked at.
  std::function<dtype(std::string_view tensor)> type;
  rounding method = rounding::search;
  std::int32_t steps = 20;  ///< Exponents tried: 0, 1 / steps .. (steps - 1) / steps.
  flywheel::context context = {};
  flywheel::control control = {};
};

/// AWQ (Lin et al. 2023): per link the s = rms(x)^r / sqrt(largest * smallest of those) whose readers, rounded, have
/// the least output error tr(dW H dW^T). (The published form takes mean|x| for rms(x); second moments hold the latter.)
/// Links none of whose readers has second moments are left. Errors: invalid_argument (second moments of another size
/// than the reader's columns, or with a negative or infinite diagonal), those of find_channel_links and quantize,
/// cancelled.
[[nodiscard]] FLYWHEEL_API result<std::vector<channel_scales>> find_awq_scales(const io::archive& model,
                                                                               const moments_by_tensor& activations,
                                                                               const awq_options& options);

struct rotation_options {
  bool stream = true;      ///< The residual stream. Norm weights move into the matrices that read it; a tied output
                           ///< head becomes a matrix of its own.
  bool heads = true;       ///< Values of each head, between attn_v and attn_output.
  std::uint64_t seed = 1;  ///< Of the random signs.
};

/// Rotates by random signs and a Hadamard matrix, offline only (QuaRot, Ashkboos et al. 2024, without its online
/// rotations): outliers are spread over all channels. Logits stay; hidden states are in another basis when the stream
/// is rotated, which the metadata key flywheel.quantize.rotated says: model::embed refuses such models. Heads of layers
/// whose values have no channel_link stay as they are. Errors: unsupported, naming the tensor or operation: a residual
/// stream that is read or written by anything but RMS norms, products and experts (layer norms; norms behind blocks); a
/// stream whose states are a model's purpose (it says how to pool them); a width without Hadamard matrix (2^m times 1,
/// 12, 20, 28 ..).
[[nodiscard]] FLYWHEEL_API result<io::archive> rotate(const io::archive& model, const rotation_options& options = {});

}  // namespace flywheel::inline v0::quant
