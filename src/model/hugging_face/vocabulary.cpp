// Which file holds the vocabulary, the roles of its tokens, and the chat template.
#include <algorithm>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/family.hpp"
#include "src/model/hugging_face/token_table.hpp"
#include "src/model/hugging_face/translate.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

/// Gemma 4 writes these in its answers for programs to read, so they are not hidden like other control tokens.
constexpr std::string_view gemma4_visible[] = {"<|channel>",       "<channel|>",       "<|tool_call>", "<tool_call|>",
                                               "<|tool_response>", "<tool_response|>", "<|\"|>"};

struct found_vocabulary {
  bool any = false;
  read_vocabulary read{.table = token_table(0)};
};

/// tokenizer.json says most. Of a SentencePiece vocabulary it lacks the scores, which tokenizer.model has.
result<found_vocabulary> find_vocabulary(const folder& from, std::int64_t rows) {
  found_vocabulary out;
  FLYWHEEL_TRY(const auto json_text, from.read("tokenizer.json"));
  if (json_text) {
    FLYWHEEL_TRY(out.read, read_tokenizer_json(from, rows));
    out.any = true;
    if (out.read.model != "llama") return out;
  }
  FLYWHEEL_TRY(const auto proto, from.read("tokenizer.model"));
  if (proto) {
    auto read = read_sentencepiece(*proto, from.where("tokenizer.model"), rows);
    if (read && out.any) {  // its pieces, with the tokens and roles that were added
      for (std::size_t i = 0; i < read->table.tokens.size(); ++i)
        if (read->table.tokens[i] == out.read.table.tokens[i]) out.read.table.scores[i] = read->table.scores[i];
      return out;
    }
    if (!read && !out.any) return std::move(read).error();
    if (read) out = {true, *std::move(read)};
    return out;
  }
  if (out.any) return out;
  FLYWHEEL_TRY(const auto words, from.read("vocab.txt"));
  if (words) {
    FLYWHEEL_TRY(out.read, read_vocab_txt(*words, from.where("vocab.txt"), rows));
    out.any = true;
  }
  return out;
}

/// Tokens that were added to the vocabulary of tokenizer.model: {"7": {"content": "<x>", "special": true}}, and
/// {"<x>": 7} in added_tokens.json.
void add_tokens(const json& decoder, const json& added, token_table& table) {
  if (added.is_object())
    for (const auto& [token, id] : added.items())
      if (id.is_number_integer()) table.add_special(id.get<std::int64_t>(), token, false);
  if (decoder.is_object())
    for (const auto& [id, token] : decoder.items())
      if (!id.empty() && id.size() < 10 &&
          std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; }))
        table.add_special(std::stoll(id), std::string(text_of(token)), member(token, "special") == json(true));
}

struct role {
  const char* name;
  const char* key;  ///< Of tokenizer.ggml; null: no key of its own.
};
constexpr role roles[] = {{"bos", "bos_token_id"},       {"eos", "eos_token_id"},     {"unk", "unknown_token_id"},
                          {"sep", "seperator_token_id"}, {"pad", "padding_token_id"}, {"cls", nullptr},
                          {"mask", "mask_token_id"},     {"eot", "eot_token_id"}};

/// The spelling of each role's token: from tokenizer_config.json, else special_tokens_map.json, else the vocabulary's
/// own file. What the post-processor puts around a text is bos and eos, whatever else says.
std::map<std::string, std::string, std::less<>> spellings(const read_vocabulary& v, const json& tokenizer_config,
                                                          const json& special_map) {
  std::map<std::string, std::string, std::less<>> by_role;
  for (const role& r : roles) {
    const std::string name = std::string(r.name) + "_token";
    for (const json* file : {&tokenizer_config, &special_map})
      if (const std::string_view token = text_of(member(*file, name)); !token.empty() && !by_role.contains(r.name))
        by_role[r.name] = std::string(token);
    if (const auto own = v.special.find(name); own != v.special.end() && !by_role.contains(r.name))
      by_role[r.name] = own->second;
  }
  const auto take = [&](const char* to, const char* from) {
    if (!by_role.contains(to) && by_role.contains(from)) by_role[to] = by_role[from];
  };
  take("bos", "cls");
  take("eos", "sep");
  if (const auto first = v.special.find("first"); first != v.special.end()) by_role["bos"] = first->second;
  if (const auto last = v.special.find("last"); last != v.special.end()) {
    if (const auto eos = by_role.find("eos"); eos != by_role.end() && eos->second != last->second)
      by_role["eot"] = eos->second;  // what ends an answer is another token
    by_role["eos"] = last->second;
  }
  return by_role;
}

/// Ids of the roles: of the spellings, else from config.json, else from generation_config.json.
void add_roles(io::metadata& meta, const read_vocabulary& v, const config& c, const json& generation,
               const std::map<std::string, std::string, std::less<>>& by_role) {
  for (const role& r : roles) {
    if (r.key == nullptr) continue;
    std::int64_t id = -1;
    if (const auto spelling = by_role.find(r.name); spelling != by_role.end()) {
      id = v.table.find(spelling->second);
      if (id < 0 && v.model == "bert") id = v.table.find(std::string(space_mark) + spelling->second);
    }
    const std::string name = std::string(r.name) + "_token_id";
    for (const json* given : {&c.find(name), &member(generation, name)}) {
      const json& number = given->is_array() && !given->empty() ? given->front() : *given;
      if (id < 0 && number.is_number_integer()) id = number.get<std::int64_t>();
    }
    if (id >= 0 && id < v.table.size())
      meta.set("tokenizer.ggml." + std::string(r.key), static_cast<std::uint32_t>(id));
  }
  for (const char* which : {"bos", "eos"}) {
    const std::string flag = "tokenizer.ggml.add_" + std::string(which) + "_token";
    const io::value* value = meta.find(flag);  // must be possible
    if (value != nullptr && *value == io::value(true) &&
        !meta.contains("tokenizer.ggml." + std::string(which) + "_token_id"))
      meta.set(flag, false);
  }
}

/// chat_template.jinja, else the chat_template of tokenizer_config.json or chat_template.json: one, or several by name.
result<void> add_chat_template(io::metadata& meta, const folder& from, const json& tokenizer_config) {
  constexpr const char* key = "tokenizer.chat_template";
  FLYWHEEL_TRY(auto own, from.read("chat_template.jinja"));
  if (own) {
    meta.set(key, *std::move(own));
    return {};
  }
  FLYWHEEL_TRY(const json companion, from.read_json("chat_template.json"));
  const json& configured = member(tokenizer_config, "chat_template");
  const json& given = configured.is_null() ? member(companion, "chat_template") : configured;
  if (given.is_string()) meta.set(key, given.get<std::string>());
  if (!given.is_array()) return {};
  std::vector<std::string> names;
  for (const json& one : given) {
    const std::string name(text_of(member(one, "name")));
    const std::string text(text_of(member(one, "template")));
    if (name == "default") {
      meta.set(key, text);
    } else if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(name);
      meta.set(std::string(key) + "." + name, text);
    }
  }
  if (!names.empty()) meta.set("tokenizer.chat_templates", std::move(names));
  return {};
}

}  // namespace

result<void> add_vocabulary(model_builder& model, std::int64_t rows) {
  const folder& from = model.files();
  if (rows > 1 << 24) return error{errc::unsupported, "more than 16 million tokens", from.path().string()};
  FLYWHEEL_TRY(found_vocabulary found, find_vocabulary(from, rows));
  if (!found.any) return {};
  read_vocabulary& v = found.read;
  FLYWHEEL_TRY(const json tokenizer_config, from.read_json("tokenizer_config.json"));
  FLYWHEEL_TRY(const json special_map, from.read_json("special_tokens_map.json"));
  FLYWHEEL_TRY(const json generation, from.read_json("generation_config.json"));
  FLYWHEEL_TRY(const json added, from.read_json("added_tokens.json"));
  if (v.model == "llama") add_tokens(member(tokenizer_config, "added_tokens_decoder"), added, v.table);
  const auto by_role = spellings(v, tokenizer_config, special_map);

  io::metadata& meta = model.metadata;
  if (model.family().architecture == "gemma4" && v.model == "llama") {
    v.model = "gemma4";
    for (const std::string_view token : gemma4_visible)
      if (const std::int64_t id = v.table.find(token); id >= 0)
        v.table.kinds[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(text::token_kind::user_defined);
  }
  if (v.model == "llama") v.keys.erase("tokenizer.ggml.merges");  // its scores say the same
  meta.set("tokenizer.ggml.model", v.model);
  if (!v.keys.contains("tokenizer.ggml.pre")) meta.set("tokenizer.ggml.pre", std::string("default"));
  for (const io::entry& e : v.keys.entries()) meta.set(e.key, e.value);
  const auto flag = [&](const char* from_key, const char* key) {
    if (const json& value = member(tokenizer_config, from_key); value.is_boolean()) meta.set(key, value.get<bool>());
  };
  if (v.model != "bert") {
    flag("add_bos_token", "tokenizer.ggml.add_bos_token");
    flag("add_eos_token", "tokenizer.ggml.add_eos_token");
  }
  if (v.model == "llama") flag("add_prefix_space", "tokenizer.ggml.add_space_prefix");
  add_roles(meta, v, model.config(), generation, by_role);
  meta.set("tokenizer.ggml.tokens", std::move(v.table.tokens));
  if (v.scored) meta.set("tokenizer.ggml.scores", std::move(v.table.scores));
  meta.set("tokenizer.ggml.token_type", std::move(v.table.kinds));
  return add_chat_template(meta, from, tokenizer_config);
}

}  // namespace flywheel::inline v0::hugging_face
