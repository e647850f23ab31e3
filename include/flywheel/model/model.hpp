// A loaded model: immutable, shared by any number of threads and sessions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/model/embedding.hpp"
#include "flywheel/model/session.hpp"
#include "flywheel/text/tokenizer.hpp"

namespace flywheel::inline v0 {

namespace device {
class device;
class observer;
}  // namespace device

struct model_options {
  flywheel::context context;  ///< Empty: one with default options is created.
  flywheel::control control;  ///< Progress and cancellation of loading.
  /// Who computes, most wanted first (device::open_device); the CPU takes what none of them does, and whatever a device
  /// did that is lost later.
  std::vector<std::shared_ptr<const device::device>> devices = {};
  /// Is shown what goes into the weights (flywheel/device/observer.hpp), by the CPU; null: nothing is different.
  std::shared_ptr<device::observer> observer = {};
};

/// Facts about a model, from its metadata.
struct model_info {
  std::string architecture;     ///< "llama"
  std::string name;             ///< general.name; may be empty.
  std::string weights;          ///< The type most weight bytes have: "Q4_K".
  std::int64_t parameters = 0;  ///< Number of weights.
  std::int32_t n_vocab = 0;
  std::int32_t n_layers = 0;
  std::int32_t n_embd = 0;       ///< Hidden size.
  std::int32_t n_ctx_train = 0;  ///< Positions it was trained for.
};

/// Memory a configuration takes, known before loading.
struct footprint {
  std::size_t weights = 0;  ///< Bytes of packed weights, as the devices keep them.
  std::size_t kv = 0;       ///< Bytes of one session's KV cache when its context is full.
  std::size_t arena = 0;    ///< Bytes of one session's intermediate results and logits.
  [[nodiscard]] std::size_t total() const noexcept { return weights + kv + arena; }
};

/// A cheap handle, copied by value; thread-safe.
class FLYWHEEL_API model {
 public:
  model() noexcept = default;
  /// Opens a file or a Hugging Face folder (open_model_archive), packs its weights for its devices in parallel. Errors:
  /// those of open_model_archive and text::tokenizer::from_metadata; unsupported for an architecture or tensor type
  /// that is not known (named in the message); malformed for missing or contradictory keys and tensors; cancelled;
  /// out_of_memory.
  [[nodiscard]] static result<model> open(const std::filesystem::path& path, const model_options& options = {});
  [[nodiscard]] static result<model> open(const io::archive& file, const model_options& options = {});

  /// What `options` will take, without loading weights (reads the header only); within 5% of what is then used.
  [[nodiscard]] static result<flywheel::footprint> footprint(const io::archive& file,
                                                             const session_options& session = {},
                                                             const flywheel::context& ctx = {});

  [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }
  [[nodiscard]] const model_info& info() const noexcept;
  [[nodiscard]] const io::metadata& metadata() const noexcept;
  /// Empty when the file carries no vocabulary.
  [[nodiscard]] const text::tokenizer& tokenizer() const noexcept;
  [[nodiscard]] const flywheel::context& context() const noexcept;
  /// Bytes of packed weights now held.
  [[nodiscard]] std::size_t weight_bytes() const noexcept;

  /// A new sequence. Errors: invalid_argument, unsupported (an encoder cannot continue texts), out_of_memory.
  [[nodiscard]] result<session> new_session(const session_options& options = {}) const;

  /// Turns texts into vectors. Several texts share a forward pass, each seeing itself alone: a result does not depend
  /// on the others, nor on n_batch, nor on threads. Texts are encoded with the special tokens the vocabulary asks for;
  /// special tokens in a text are plain text. Memory is taken for the call. Any number of calls may run at the same
  /// time. Errors: invalid_argument (an option; a text without tokens; an id out of range), context_full (a text is too
  /// long, named by its index), unsupported (no vocabulary; a pooling the model has nothing for), cancelled,
  /// out_of_memory.
  [[nodiscard]] result<embeddings> embed(std::span<const std::string> texts, const embed_options& options = {}) const;
  /// The same for token ids, taken as they are.
  [[nodiscard]] result<embeddings> embed(std::span<const std::vector<token_id>> texts,
                                         const embed_options& options = {}) const;
  /// How well each document answers a query: scores [documents], larger is better, on the model's own scale; pooling is
  /// rank. An encoder reads "query, separator, document"; a decoder reads the text in `tokenizer.chat_template.rerank`,
  /// where the special tokens are parsed. `truncate` cuts documents, never the query. Errors: those of embed.
  [[nodiscard]] result<std::vector<float>> rerank(std::string_view query, std::span<const std::string> documents,
                                                  const embed_options& options = {}) const;

  struct state;
  explicit model(std::shared_ptr<const state> s) noexcept : state_(std::move(s)) {}
  [[nodiscard]] const std::shared_ptr<const state>& shared() const noexcept { return state_; }

 private:
  std::shared_ptr<const state> state_;
};

}  // namespace flywheel::inline v0
