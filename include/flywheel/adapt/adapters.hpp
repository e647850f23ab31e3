// Adapters as files: put into weights, taken out of a fine-tuned model, combined.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flywheel/adapt/lineage.hpp"
#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::adapt {

/// An adapter (open_adapter_archive) and how much of it.
struct scaled_adapter {
  io::archive adapter;
  float scale = 1;
};

/// The base with the adapters in its weights: W + sum of scale_i * delta_i, in f32, computed when it is read. What
/// computes with it equals, within rounding, the base with the adapters attached. Scale -1 takes an adapter out again.
/// An output head that was tied to embeddings becomes a tensor of its own where only one of them changes. Tensors that
/// no adapter names stay as they are. Errors: those of adapter_changes.
[[nodiscard]] FLYWHEEL_API result<io::archive> apply_adapters(const io::archive& base,
                                                              std::span<const scaled_adapter> adapters);

struct merge_adapters_options {
  std::optional<dtype> type = {};              ///< Of matrices that change; nothing: each keeps its own.
  bool search = true;                          ///< Quantized types look for the best scales; else plain rounding.
  std::optional<adapt::lineage> lineage = {};  ///< Written into the metadata.
  flywheel::context context = {};
  flywheel::control control = {};  ///< Progress in bytes written, and cancellation.
};

struct merged_adapters {
  std::uint64_t tensors = 0, changed = 0;
  std::uint64_t bytes = 0;  ///< Of tensors.
};

/// Writes apply_adapters' archive as a model file: GGUF, or safetensors where the name ends with .safetensors. What
/// changes is exact in f32 and then rounded to its type; rows that are no whole blocks of it become f16. One changed
/// matrix is in memory at a time. Errors: those of apply_adapters; invalid_argument (a type that cannot be encoded;
/// `out` is one of the inputs; NaN or infinity), cancelled, io.
[[nodiscard]] FLYWHEEL_API result<merged_adapters> merge_adapters(const io::archive& base,
                                                                  std::span<const scaled_adapter> adapters,
                                                                  const std::filesystem::path& out,
                                                                  const merge_adapters_options& options = {});

struct extract_options {
  std::int64_t rank = 16;             ///< Of every tensor, at most; and
  std::optional<double> energy = {};  ///< the least rank with this share of the squared difference (0 < e <= 1).
  dtype type = dtype::f16;            ///< f32, f16 or bf16.
  std::string pattern = {};           ///< Tensors with a match of this expression (PCRE2); empty: all matrices.
  bool embeddings = false;            ///< Also token_embd and output.
  int iterations = 2;                 ///< Power iterations of the randomized range finder.
  std::uint64_t seed = 1;
  flywheel::context context = {};
  flywheel::control control = {};
};

struct extracted_tensor {
  std::string name;
  std::int64_t rank = 0;
  double norm = 0;   ///< ||D||_F of the difference.
  double error = 0;  ///< ||D - B A||_F / ||D||_F.
};

struct extracted_adapter {
  io::archive adapter;  ///< In memory; write_adapter writes it.
  std::vector<extracted_tensor> tensors;
  double error = 0;                   ///< Over all tensors taken.
  std::vector<std::string> left_out;  ///< Tensors that differ, but are no matrices that were asked for.
};

/// The best low-rank adapter for tuned - base: D ~ U S V^T by a randomized SVD (Halko, Martinsson & Tropp 2011), B = U
/// sqrt(S), A = sqrt(S) V^T. The same for any number of threads. Errors: invalid_argument (options; other architectures
/// or extents, naming the tensor; NaN or infinity), cancelled, out_of_memory.
[[nodiscard]] FLYWHEEL_API result<extracted_adapter> extract_adapter(const io::archive& base, const io::archive& tuned,
                                                                     const extract_options& options = {});

enum class combination : std::uint8_t {
  concatenate,  ///< Ranks one after the other: exact.
  linear,       ///< sum of sqrt(|scale|) A, and of B: cross terms come along. Ranks must be equal.
  svd,          ///< The summed change, compressed to `rank`.
  ties,         ///< Changes merged by ties, then compressed to `rank`.
  dare_linear,  ///< The same by dare_linear.
  dare_ties,
};

struct combine_options {
  combination how = combination::concatenate;
  std::int64_t rank = 0;  ///< Of compressed ones; 0: the largest of the adapters' ranks.
  double density = 0.5;   ///< Of ties and dare.
  dtype type = dtype::f32;
  std::uint64_t seed = 1;
  std::string name = {};
  flywheel::context context = {};
  flywheel::control control = {};
};

/// One adapter from several of one base. Errors: those of adapter_changes, invalid_argument (options; DoRA or replaced
/// tensors, which have no product form), cancelled, out_of_memory.
[[nodiscard]] FLYWHEEL_API result<extracted_adapter> combine_adapters(const io::archive& base,
                                                                      std::span<const scaled_adapter> adapters,
                                                                      const combine_options& options = {});

}  // namespace flywheel::inline v0::adapt
