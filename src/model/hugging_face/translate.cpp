#include "src/model/hugging_face/translate.hpp"

#include <set>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/family.hpp"
#include "src/model/hugging_face/names.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

using io::detail::in_quotes;

result<void> add_tensors(model_builder& model) {
  const config& c = model.config();
  const bool tied = c.flag("tie_word_embeddings", false);
  const std::int64_t layers = c.layers();
  if (c.fault()) return *c.fault();
  std::set<std::int64_t> seen;
  for (const io::tensor_info& tensor : model.files().weights().tensors()) {
    if (is_foreign(tensor.name)) continue;
    const std::string name = plain_name(tensor.name);
    if (tied && name == "lm_head.weight") continue;  // a copy of the embedding
    const name_match m = find_row(model.family(), name);
    if (m.row == nullptr) {
      error e = model.wrong(tensor, "models of architecture " + in_quotes(c.architecture()) +
                                        " have no such tensor, so it cannot be translated");
      e.code = errc::unsupported;
      return e;
    }
    if (m.names.layer >= layers)
      return model.wrong(tensor, "config.json says that there are " + std::to_string(layers) + " layers");
    if (m.names.layer >= 0) seen.insert(m.names.layer);
    FLYWHEEL_CHECK(m.row->how != nullptr ? m.row->how(model, tensor, m.names) : model.add(m.names.first, tensor));
  }
  for (std::int64_t layer = 0; layer < layers; ++layer)
    if (!seen.contains(layer))
      return error{errc::malformed,
                   "the weights have no tensor of layer " + std::to_string(layer) + "; is a file missing?",
                   model.files().path().string()};
  return {};
}

result<void> add_keys(model_builder& model) {
  const config& c = model.config();
  for (const key_row& row : model.family().keys) {
    if (row.type == key_type::number) {
      if (const auto x = c.number(row.from)) model.set_number(row.to, *x);
    } else if (row.required) {
      model.set_count(row.to, c.required(row.from));
    } else if (const auto n = c.count(row.from)) {
      model.set_count(row.to, *n);
    }
  }
  if (const json& causal = c.find("is_causal"); causal.is_boolean() && !causal.get<bool>())
    model.set("attention.causal", false);
  if (c.fault()) return *c.fault();
  return {};
}

/// How sentence-transformers make one vector of many: the folder that modules.json names says it.
result<void> add_pooling(model_builder& model) {
  FLYWHEEL_TRY(const json modules, model.files().read_json("modules.json"));
  if (!modules.is_array()) return {};
  for (const json& module : modules) {
    if (!text_of(member(module, "type")).ends_with("Pooling")) continue;
    const std::string file = std::string(text_of(member(module, "path"))) + "/config.json";
    if (file.find("..") != file.npos || file.starts_with('/'))
      return error{errc::malformed, "the path leaves the folder", model.files().where("modules.json")};
    FLYWHEEL_TRY(const json pooling, model.files().read_json(file));
    int joined = 0;
    for (const auto& [key, value] : pooling.items()) joined += key.starts_with("pooling_mode_") && value == json(true);
    if (joined > 1)
      return error{errc::unsupported, "unsupported: vectors of several poolings, one behind the other",
                   model.files().where(file)};
    struct mode {
      const char* flag;
      std::string_view name;
      std::uint32_t number;
    };
    for (const mode& m : {mode{"pooling_mode_mean_tokens", "mean", 1}, mode{"pooling_mode_cls_token", "cls", 2},
                          mode{"pooling_mode_lasttoken", "lasttoken", 3}})
      if (member(pooling, m.flag) == json(true) || text_of(member(pooling, "pooling_mode")) == m.name) {
        model.set("pooling_type", m.number);
        return {};
      }
    return error{errc::unsupported, "unsupported pooling; known are the mean, the first and the last token",
                 model.files().where(file)};
  }
  return {};
}

/// general.file_type: what most matrices are stored in.
std::uint32_t file_type(const io::archive& weights) {
  std::uint64_t bytes[3] = {};
  for (const io::tensor_info& t : weights.tensors()) {
    if (t.type == dtype::u8) return 38;  // MXFP4
    if (t.dims.rank() < 2) continue;
    if (t.type == dtype::f32) bytes[0] += t.bytes;
    if (t.type == dtype::f16) bytes[1] += t.bytes;
    if (t.type == dtype::bf16) bytes[2] += t.bytes;
  }
  constexpr std::uint32_t numbers[3] = {0, 1, 32};
  return numbers[std::max_element(bytes, bytes + 3) - bytes];
}

}  // namespace

result<io::archive> translate(const folder& from) {
  FLYWHEEL_TRY(json document, from.read_json("config.json"));
  if (!document.is_object())
    return error{errc::malformed, "the file must hold a JSON object", from.where("config.json")};
  config c(std::move(document), from.where("config.json"));
  const family* f = find_family(c.architecture());
  if (f == nullptr && c.architecture().empty())
    return error{errc::malformed, "the file names no model architecture", c.where() + ": key 'architectures'"};
  if (f == nullptr)
    return error{errc::unsupported,
                 "unsupported architecture " + in_quotes(c.architecture()) + "; known are " + known_architectures(),
                 c.where() + ": key 'architectures'"};
  c.set_defaults(f->defaults);

  model_builder model(from, c, *f);
  model.metadata.set("general.architecture", std::string(f->architecture));
  model.metadata.set("general.type", std::string("model"));
  model.metadata.set("general.name", from.path().filename().string());
  model.metadata.set("general.file_type", file_type(from.weights()));
  model.metadata.set("general.quantization_version", std::uint32_t{2});
  FLYWHEEL_CHECK(add_keys(model));
  if (f->finish != nullptr) FLYWHEEL_CHECK(f->finish(model));
  if (c.fault()) return *c.fault();
  FLYWHEEL_CHECK(add_pooling(model));
  FLYWHEEL_CHECK(add_tensors(model));
  FLYWHEEL_TRY(const std::int64_t rows, model.embedding_rows());
  FLYWHEEL_CHECK(add_vocabulary(model, rows));
  return model.finish();
}

}  // namespace flywheel::inline v0::hugging_face
