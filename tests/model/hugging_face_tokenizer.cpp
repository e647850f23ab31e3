// Vocabularies of Hugging Face folders: tokenizer.json, tokenizer.model and their companions become the keys that GGUF
// has, and give the same ids.
#include <bit>

#include "flywheel/model/open.hpp"
#include "src/model/hugging_face/family.hpp"
#include "src/model/hugging_face/token_table.hpp"
#include "src/model/hugging_face/translate.hpp"
#include "support/data.hpp"
#include "support/hugging_face.hpp"
#include "text/vocabularies.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;

using file_map = std::map<std::string, std::string, std::less<>>;

/// The tokenizer.* keys of a folder with these files and as many embedding rows.
result<io::metadata> translated(file_map files, std::int64_t rows,
                                const std::string& architecture = "LlamaForCausalLM") {
  const hugging_face::folder folder("folder", std::move(files), {});
  hugging_face::config config(json{{"architectures", {architecture}}}, "config.json");
  hugging_face::model_builder builder(folder, config, *hugging_face::find_family(architecture));
  if (auto done = hugging_face::add_vocabulary(builder, rows); !done) return done.error();
  return builder.metadata;
}

io::metadata keys_of(file_map files, std::int64_t rows, const std::string& architecture = "LlamaForCausalLM") {
  auto made = translated(std::move(files), rows, architecture);
  INFO((made ? "" : made.error().to_string()));
  REQUIRE(made.has_value());
  return *made;
}

/// tokenizer.json of a vocabulary in GGUF's keys. Control and user-defined tokens are added tokens.
json tokenizer_json(const io::metadata& m) {
  const auto tokens = m.strings("tokenizer.ggml.tokens").value();
  const auto kinds = m.integers("tokenizer.ggml.token_type").value();
  json vocab = json::object(), added = json::array();
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (kinds[id] == test::control || kinds[id] == user_defined || kinds[id] == unknown)
      added.push_back(
          {{"id", id}, {"content", tokens[id]}, {"special", kinds[id] != user_defined}, {"normalized", false}});
    else
      vocab[tokens[id]] = id;
  }
  return {{"version", "1.0"}, {"added_tokens", added}, {"model", {{"type", "BPE"}, {"vocab", vocab}}}};
}

json byte_level_json(const io::metadata& m, const std::string& regex) {
  json out = tokenizer_json(m);
  json merges = json::array();
  const auto ranked = m.strings("tokenizer.ggml.merges").value();
  for (const std::string& merge : ranked) merges.push_back(merge);
  out["model"]["merges"] = merges;
  out["model"]["byte_fallback"] = false;
  out["decoder"] = {{"type", "ByteLevel"}};
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", regex.empty()}};
  out["pre_tokenizer"] =
      regex.empty()
          ? bytes
          : json{{"type", "Sequence"},
                 {"pretokenizers",
                  {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}},
                   bytes}}};
  return out;
}

void check_same_ids(const io::metadata& a, const io::metadata& b) {
  const text::tokenizer first = make(a), second = make(b);
  random_numbers random(7);
  for (int i = 0; i < 60; ++i) {
    const std::string text = i == 0 ? sample_text() : random_text(random, 30);
    for (const bool special : {false, true}) {
      const text::encode_options options{.add_special = special, .parse_special = special};
      CHECK(first.encode(text, options).value() == second.encode(text, options).value());
    }
  }
}

constexpr const char* llama3_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2_regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* o200k_regex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* tekken_regex =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST_CASE("Byte-level BPE: ids, pre-tokenizers by their expressions, added tokens") {
  const struct {
    const char *regex, *name;
  } rules[] = {
      {"", "gpt-2"}, {llama3_regex, "dbrx"}, {qwen2_regex, "qwen2"}, {o200k_regex, "gpt-4o"}, {tekken_regex, "tekken"}};
  for (const auto& rule : rules) {
    INFO(rule.name);
    const io::metadata original = bpe_metadata(rule.name);
    const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
    const json config = {{"bos_token", "<|bos|>"}, {"eos_token", {{"content", "<|eot_id|>"}}}, {"add_bos_token", true}};
    const io::metadata m = keys_of(
        {{"tokenizer.json", byte_level_json(original, rule.regex).dump()}, {"tokenizer_config.json", config.dump()}},
        n);
    CHECK(m.string("tokenizer.ggml.model").value() == "gpt2");
    CHECK(m.string("tokenizer.ggml.pre").value() == rule.name);
    CHECK(m.integer("tokenizer.ggml.bos_token_id").value() == original.integer("tokenizer.ggml.bos_token_id").value());
    CHECK(m.integer("tokenizer.ggml.eos_token_id").value() == original.integer("tokenizer.ggml.eos_token_id").value());
    CHECK(m.integers("tokenizer.ggml.token_type").value() == original.integers("tokenizer.ggml.token_type").value());
    io::metadata same = original;
    same.set("tokenizer.ggml.add_bos_token", true);
    same.set("tokenizer.ggml.add_eos_token", false);
    check_same_ids(m, same);
  }
}

TEST_CASE("Byte-level BPE: what ignore_merges, NFC and pairs of merges say") {
  const io::metadata original = bpe_metadata("llama-bpe");
  const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
  json document = byte_level_json(original, llama3_regex);
  document["model"]["ignore_merges"] = true;
  document["normalizer"] = {{"type", "NFC"}};
  json pairs = json::array();
  for (const json& merge : document["model"]["merges"]) {
    const auto text = merge.get<std::string>();
    pairs.push_back({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
  }
  document["model"]["merges"] = pairs;
  const io::metadata m = keys_of({{"tokenizer.json", document.dump()}}, n + 5);
  CHECK(m.string("tokenizer.ggml.pre").value() == "llama-bpe");
  CHECK(m.boolean("tokenizer.ggml.normalizer.nfc").value());
  CHECK(!m.contains("tokenizer.ggml.add_bos_token"));  // the rule's own default counts
  const auto merges = m.strings("tokenizer.ggml.merges").value();
  const auto wanted = original.strings("tokenizer.ggml.merges").value();
  CHECK(std::equal(merges.begin(), merges.end(), wanted.begin(), wanted.end()));
  const auto tokens = m.strings("tokenizer.ggml.tokens").value();
  REQUIRE(tokens.size() == static_cast<std::size_t>(n + 5));
  CHECK(tokens.back() == "[PAD" + std::to_string(n + 4) + "]");
  CHECK(m.integers("tokenizer.ggml.token_type").value().back() == 5);
}

TEST_CASE("The post-processor frames a text") {
  const io::metadata original = bpe_metadata("qwen2");
  const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
  json document = byte_level_json(original, qwen2_regex);
  const json a = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto token = [](const char* id) { return json{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  document["post_processor"] = {{"type", "TemplateProcessing"}, {"single", {a, token("<|bos|>")}}};
  const json config = {{"eos_token", "<|eot_id|>"}};
  const io::metadata m = keys_of({{"tokenizer.json", document.dump()}, {"tokenizer_config.json", config.dump()}}, n);
  CHECK(m.boolean("tokenizer.ggml.add_eos_token").value());
  CHECK(!m.boolean("tokenizer.ggml.add_bos_token").value());
  CHECK(m.integer("tokenizer.ggml.eos_token_id").value() == n - 3);  // what the template ends with
  CHECK(m.integer("tokenizer.ggml.eot_token_id").value() == n - 2);  // what ends an answer
  document["post_processor"] = {
      {"type", "Sequence"},
      {"processors", {{{"type", "ByteLevel"}}, {{"type", "TemplateProcessing"}, {"single", {token("<|bos|>"), a}}}}}};
  const io::metadata front = keys_of({{"tokenizer.json", document.dump()}}, n);
  CHECK(front.boolean("tokenizer.ggml.add_bos_token").value());
  CHECK(!front.boolean("tokenizer.ggml.add_eos_token").value());
  CHECK(front.integer("tokenizer.ggml.bos_token_id").value() == n - 3);
}

TEST_CASE("Expressions and kinds that are not known are refused, with their name") {
  const io::metadata original = bpe_metadata("qwen2");
  const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
  const auto refusal = [&](const json& document) {
    const auto made = translated({{"tokenizer.json", document.dump()}}, n);
    REQUIRE(!made);
    CHECK(made.error().code == errc::unsupported);
    return made.error().to_string();
  };
  CHECK(refusal(byte_level_json(original, "\\w+x")).find("\\w+x") != std::string::npos);
  json document = byte_level_json(original, qwen2_regex);
  document["normalizer"] = {{"type", "NFKD"}};
  CHECK(refusal(document).find("NFKD") != std::string::npos);
  document = byte_level_json(original, qwen2_regex);
  document["model"]["type"] = "Strange";
  CHECK(refusal(document).find("Strange") != std::string::npos);
  document["model"]["type"] = "BPE";
  CHECK(translated({{"tokenizer.json", document.dump()}}, 10).error().code == errc::malformed);  // ids without a row
}

TEST_CASE("SentencePiece in tokenizer.json: scores from the order of the merges") {
  const io::metadata original = spm_metadata();
  const auto tokens = original.strings("tokenizer.ggml.tokens").value();
  json document = tokenizer_json(original);
  // The merges in order of the scores that they make: each piece of several characters from a prefix and a suffix.
  json merges = json::array();
  std::vector<std::string> words;
  for (std::string w : spaced_words(sample_text())) {
    if (!w.empty() && w[0] == ' ') w = std::string(hugging_face::space_mark) + w.substr(1);
    words.push_back(w);
  }
  std::vector<strings> symbols;
  for (const std::string& w : words) symbols.push_back(characters(w));
  for (const auto& [a, b] : learn_merges(symbols, 300)) merges.push_back({a, b});
  document["model"]["merges"] = merges;
  document["model"]["byte_fallback"] = true;
  document["model"]["unk_token"] = "<unk>";
  document["normalizer"] = {{"type", "Sequence"},
                            {"normalizers",
                             {{{"type", "Prepend"}, {"prepend", "▁"}},
                              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}};
  document["decoder"] = {{"type", "Sequence"}, {"decoders", json::array({{{"type", "ByteFallback"}}})}};
  const auto n = static_cast<std::int64_t>(tokens.size());
  const io::metadata m = keys_of({{"tokenizer.json", document.dump()}}, n);
  CHECK(m.string("tokenizer.ggml.model").value() == "llama");
  CHECK(m.integers("tokenizer.ggml.token_type").value() == original.integers("tokenizer.ggml.token_type").value());
  io::metadata same = original;
  check_same_ids(m, same);
  document["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};  // as Gemma's
  CHECK(keys_of({{"tokenizer.json", document.dump()}}, n).boolean("tokenizer.ggml.add_space_prefix").value() == false);
  const io::metadata gemma4 = keys_of({{"tokenizer.json", document.dump()}}, n, "Gemma4ForCausalLM");
  CHECK(gemma4.string("tokenizer.ggml.model").value() == "gemma4");
  same.set("tokenizer.ggml.add_space_prefix", false);
  check_same_ids(gemma4, same);
}

TEST_CASE("Unigram and WordPiece in tokenizer.json") {
  SECTION("Unigram") {
    const io::metadata original = unigram_metadata();
    const auto tokens = original.strings("tokenizer.ggml.tokens").value();
    const auto scores = original.floats("tokenizer.ggml.scores").value();
    json document = tokenizer_json(original);
    json vocab = json::array();
    for (std::size_t i = 0; i < tokens.size(); ++i) vocab.push_back({tokens[i], scores[i]});
    document["model"] = {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", vocab}};
    document["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"add_prefix_space", true}};
    document["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", ""}};
    const io::metadata m = keys_of({{"tokenizer.json", document.dump()},
                                    {"tokenizer_config.json", R"({"eos_token": "</s>", "pad_token": "<unk>"})"}},
                                   static_cast<std::int64_t>(tokens.size()));
    CHECK(m.string("tokenizer.ggml.model").value() == "t5");
    check_same_ids(m, original);
  }
  SECTION("WordPiece") {
    const io::metadata original = wordpiece_metadata();
    const auto tokens = original.strings("tokenizer.ggml.tokens").value();
    json document = tokenizer_json(original), vocab = json::object();
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string mark(hugging_face::space_mark);
      const std::string plain = tokens[i].starts_with(mark) ? tokens[i].substr(mark.size()) : "##" + tokens[i];
      if (i >= 5) vocab[plain] = i;
    }
    document["model"] = {
        {"type", "WordPiece"}, {"unk_token", "[UNK]"}, {"continuing_subword_prefix", "##"}, {"vocab", vocab}};
    document["normalizer"] = {{"type", "BertNormalizer"}, {"lowercase", true}, {"strip_accents", nullptr}};
    const json config = {{"cls_token", "[CLS]"},
                         {"sep_token", "[SEP]"},
                         {"pad_token", "[PAD]"},
                         {"unk_token", "[UNK]"},
                         {"mask_token", "[MASK]"}};
    const io::metadata m = keys_of({{"tokenizer.json", document.dump()}, {"tokenizer_config.json", config.dump()}},
                                   static_cast<std::int64_t>(tokens.size()), "BertModel");
    CHECK(m.string("tokenizer.ggml.model").value() == "bert");
    const auto got = m.strings("tokenizer.ggml.tokens").value();
    CHECK(std::equal(got.begin(), got.end(), tokens.begin(), tokens.end()));
    CHECK(m.integer("tokenizer.ggml.bos_token_id").value() == 2);
    CHECK(m.integer("tokenizer.ggml.seperator_token_id").value() == 3);
    check_same_ids(m, original);

    std::string lines;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string mark(hugging_face::space_mark);
      lines += i < 5 ? tokens[i] : tokens[i].starts_with(mark) ? tokens[i].substr(mark.size()) : "##" + tokens[i];
      lines += '\n';
    }
    check_same_ids(keys_of({{"vocab.txt", lines}}, static_cast<std::int64_t>(tokens.size()), "BertModel"), original);
  }
}

// ---- tokenizer.model ----

std::string varint(std::uint64_t n) {
  std::string out;
  for (; n >= 128; n >>= 7) out += static_cast<char>(n | 128);
  return out + static_cast<char>(n);
}
std::string number_field(unsigned id, std::uint64_t n) { return varint(id << 3) + varint(n); }
std::string bytes_field(unsigned id, const std::string& bytes) {
  return varint(id << 3 | 2) + varint(bytes.size()) + bytes;
}
std::string float_field(unsigned id, float x) {
  std::string out = varint(id << 3 | 5);
  for (unsigned i = 0, bits = std::bit_cast<std::uint32_t>(x); i < 4; ++i) out += static_cast<char>(bits >> 8 * i);
  return out;
}

std::string sentencepiece_model(const io::metadata& m, unsigned model_type, bool prefix) {
  const auto tokens = m.strings("tokenizer.ggml.tokens").value();
  const auto kinds = m.integers("tokenizer.ggml.token_type").value();
  const auto scores = m.floats("tokenizer.ggml.scores").value();
  std::string out;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    out += bytes_field(1, bytes_field(1, tokens[i]) + float_field(2, scores[i]) +
                              number_field(3, static_cast<std::uint64_t>(kinds[i])));
  out += bytes_field(2, number_field(3, model_type) + number_field(40, 0) + number_field(41, 1) + number_field(42, 2) +
                            number_field(43, static_cast<std::uint64_t>(-1)));
  return out + bytes_field(3, bytes_field(1, "identity") + number_field(3, prefix ? 1 : 0));
}

TEST_CASE("tokenizer.model: pieces, scores, types and roles") {
  const io::metadata original = spm_metadata();
  const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
  const io::metadata m = keys_of({{"tokenizer.model", sentencepiece_model(original, 2, true)}}, n);
  CHECK(m.string("tokenizer.ggml.model").value() == "llama");
  CHECK(m.integer("tokenizer.ggml.bos_token_id").value() == 1);
  CHECK(m.integer("tokenizer.ggml.eos_token_id").value() == 2);
  CHECK(m.integer("tokenizer.ggml.unknown_token_id").value() == 0);
  CHECK(!m.contains("tokenizer.ggml.padding_token_id"));
  CHECK(m.floats("tokenizer.ggml.scores").value().size() == static_cast<std::size_t>(n));
  check_same_ids(m, original);
  CHECK(keys_of({{"tokenizer.model", sentencepiece_model(original, 2, false)}}, n)
            .boolean("tokenizer.ggml.add_space_prefix")
            .value() == false);
  CHECK(keys_of({{"tokenizer.model", sentencepiece_model(original, 1, true)}}, n)
            .string("tokenizer.ggml.model")
            .value() == "t5");
  SECTION("added tokens take their places, special or not") {
    const json config = {{"added_tokens_decoder",
                          {{std::to_string(n), {{"content", "<|x|>"}, {"special", true}}},
                           {std::to_string(n + 1), {{"content", "▁▁y"}, {"special", false}}}}}};
    const io::metadata more = keys_of(
        {{"tokenizer.model", sentencepiece_model(original, 2, true)}, {"tokenizer_config.json", config.dump()}}, n + 3);
    const auto tokens = more.strings("tokenizer.ggml.tokens").value();
    const auto kinds = more.integers("tokenizer.ggml.token_type").value();
    const auto at = static_cast<std::size_t>(n);
    CHECK(tokens[at] == "<|x|>");
    CHECK(kinds[at] == test::control);
    CHECK(tokens[at + 1] == "  y");
    CHECK(kinds[at + 1] == user_defined);
    CHECK(kinds[at + 2] == 5);
  }
  SECTION("cut anywhere, it is refused or read, and nothing else") {
    const std::string whole = sentencepiece_model(original, 2, true);
    for (std::size_t length = 0; length < 400; ++length) {
      const auto made = translated({{"tokenizer.model", whole.substr(0, length)}}, n);
      CHECK((made.has_value() || made.error().code == errc::malformed));
    }
    CHECK(!translated({{"tokenizer.model", "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"}}, n));
  }
}

TEST_CASE("Chat templates: of their own file, of the configuration, several by name") {
  const io::metadata original = spm_metadata();
  const auto n = static_cast<std::int64_t>(original.strings("tokenizer.ggml.tokens").value().size());
  file_map files = {{"tokenizer.model", sentencepiece_model(original, 2, true)},
                    {"tokenizer_config.json", R"({"chat_template": "one"})"}};
  CHECK(keys_of(files, n).string("tokenizer.chat_template").value() == "one");
  files["chat_template.jinja"] = "two";
  CHECK(keys_of(files, n).string("tokenizer.chat_template").value() == "two");
  files.erase("chat_template.jinja");
  files["tokenizer_config.json"] =
      R"({"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]})";
  const io::metadata m = keys_of(files, n);
  CHECK(m.string("tokenizer.chat_template").value() == "a");
  CHECK(m.string("tokenizer.chat_template.tool_use").value() == "b");
}

TEST_CASE("The shared folders' tokenizers give the ids of their files") {
  FLYWHEEL_REQUIRE_SHARED(texts, "family/text");
  for (const char* name : {"tiny-base", "tiny-draft"}) {
    FLYWHEEL_REQUIRE_SHARED(folder, "family/models/" + std::string(name) + "/hf");
    FLYWHEEL_REQUIRE_SHARED(file, "family/models/" + std::string(name) + "/gguf/" + name + "-f16.gguf");
    const text::tokenizer ours = make(open_model_archive(folder).value().metadata());
    const text::tokenizer theirs = make(io::archive::open(file).value().metadata());
    std::size_t compared = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(texts)) {
      if (!entry.is_regular_file() || entry.file_size() > 4 << 20) continue;
      const std::vector<std::byte> bytes = read_bytes(entry.path());
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      const auto a = ours.encode(text, {.add_special = true}).value();
      CHECK(a == theirs.encode(text, {.add_special = true}).value());
      compared += a.size();
    }
    CHECK(compared > 10000);
  }
}

}  // namespace
