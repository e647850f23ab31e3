#include "flywheel/model/model.hpp"

#include <algorithm>
#include <map>

#include "flywheel/detail/try.hpp"
#include "flywheel/model/open.hpp"
#include "src/model/graph_engine.hpp"
#include "src/model/model_state.hpp"
#include "src/model/session_sizes.hpp"

namespace flywheel::inline v0 {
namespace {

model_info info_of(const io::archive& file, const detail::hyperparameters& h) {
  model_info out;
  out.architecture = h.architecture;
  if (auto name = file.metadata().string("general.name")) out.name = std::string(*name);
  std::map<dtype, std::uint64_t> bytes;
  for (const io::tensor_info& t : file.tensors()) {
    bytes[t.type] += t.bytes;
    out.parameters += t.dims.elements();
  }
  std::uint64_t most = 0;
  for (const auto& [type, size] : bytes)
    if (size > most) {
      most = size;
      out.weights = std::string(to_string(type));
    }
  out.n_vocab = static_cast<std::int32_t>(h.n_vocab);
  out.n_layers = static_cast<std::int32_t>(h.n_layers);
  out.n_embd = static_cast<std::int32_t>(h.n_embd);
  out.n_ctx_train = static_cast<std::int32_t>(std::min<std::int64_t>(h.n_ctx_train, 0x7fffffff));
  return out;
}

/// The vocabulary of the file, or an empty one when it has none; it must not name more tokens than the model has.
result<text::tokenizer> tokenizer_of(const io::archive& file, const detail::hyperparameters& h) {
  if (!file.metadata().contains("tokenizer.ggml.tokens")) return text::tokenizer{};
  FLYWHEEL_TRY(auto vocabulary, text::tokenizer::from_metadata(file.metadata()));
  if (vocabulary.size() > h.n_vocab)
    return error{errc::malformed,
                 "the vocabulary has " + std::to_string(vocabulary.size()) + " tokens, the embedding table only " +
                     std::to_string(h.n_vocab) + " rows",
                 "tokenizer.ggml.tokens"};
  return vocabulary;
}

}  // namespace

error detail::in_file(error e, const io::archive& file) {
  const std::string path = file.path().string();
  if (!path.empty() && e.where.find(path) == std::string::npos)
    e.where = e.where.empty() ? path : path + ": " + e.where;
  return e;
}

result<model> model::open(const std::filesystem::path& path, const model_options& options) {
  return detail::guarded([&]() -> result<model> {
    FLYWHEEL_TRY(const io::archive file, open_model_archive(path));
    return open(file, options);
  });
}

result<model> model::open(const io::archive& file, const model_options& options) {
  return detail::guarded([&]() -> result<model> {
    auto s = std::make_shared<state>();
    FLYWHEEL_TRY(s->ctx, options.context.or_default());
    auto engine = detail::load_engine(file, s->ctx, options.control, options.devices, options.observer);
    if (!engine) return detail::in_file(std::move(engine).error(), file);
    auto vocabulary = tokenizer_of(file, engine->parameters);
    if (!vocabulary) return detail::in_file(std::move(vocabulary).error(), file);
    s->tokenizer = *std::move(vocabulary);
    s->file = file;
    s->info = info_of(file, engine->parameters);
    s->weight_bytes = engine->weight_bytes;
    s->engine = std::move(engine->engine);
    return model(std::shared_ptr<const state>(std::move(s)));
  });
}

result<flywheel::footprint> model::footprint(const io::archive& file, const session_options& session,
                                             const flywheel::context& ctx) {
  return detail::guarded([&]() -> result<flywheel::footprint> {
    FLYWHEEL_TRY(const flywheel::context used, ctx.or_default());
    auto engine = detail::measure_engine(file, used);
    if (!engine) return detail::in_file(std::move(engine).error(), file);
    flywheel::footprint out;
    out.weights = engine->weight_bytes;
    if (engine->engine->encoder()) {  // what embedding texts takes
      out.arena = engine->engine->workspace_bytes(std::max(1, session.n_batch));
      return out;
    }
    FLYWHEEL_TRY(const detail::session_sizes sizes, detail::sizes_of(*engine->engine, session));
    out.kv = sizes.kv_bytes;
    out.arena = sizes.arena_bytes;
    return out;
  });
}

const model_info& model::info() const noexcept { return state_->info; }
const io::metadata& model::metadata() const noexcept { return state_->file.metadata(); }
const text::tokenizer& model::tokenizer() const noexcept { return state_->tokenizer; }
const flywheel::context& model::context() const noexcept { return state_->ctx; }
std::size_t model::weight_bytes() const noexcept { return state_->weight_bytes; }

}  // namespace flywheel::inline v0
