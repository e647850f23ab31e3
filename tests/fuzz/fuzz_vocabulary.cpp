// Arbitrary vocabularies: a good one is damaged as the input says, then loaded, and used if it was accepted. Each step
// of the input is an operation, a place, and a payload.
#include <cstdlib>
#include <cstring>

#include "text/vocabularies.hpp"

namespace {

using namespace flywheel;

void require(bool holds) {
  if (!holds) std::abort();
}

/// Takes the input apart; gives zeros when it is used up.
struct input {
  std::string_view rest;
  unsigned byte() {
    if (rest.empty()) return 0;
    const auto b = static_cast<unsigned char>(rest[0]);
    rest.remove_prefix(1);
    return b;
  }
  std::string bytes(std::size_t n) {
    const std::string s(rest.substr(0, n));
    rest.remove_prefix(s.size());
    return s;
  }
  float number() {
    float f = 0;
    const std::string s = bytes(4);
    std::memcpy(&f, s.data(), s.size());
    return f;
  }
};

constexpr const char* keys[] = {"model",
                                "pre",
                                "tokens",
                                "scores",
                                "token_type",
                                "merges",
                                "bos_token_id",
                                "eos_token_id",
                                "unknown_token_id",
                                "padding_token_id",
                                "eot_token_id",
                                "cls_token_id",
                                "seperator_token_id",
                                "mask_token_id",
                                "add_bos_token",
                                "add_eos_token",
                                "add_space_prefix",
                                "remove_extra_whitespaces",
                                "precompiled_charsmap",
                                "normalizer.lowercase",
                                "normalizer.strip_accents",
                                "normalizer.nfc",
                                "fim_pad_token_id"};
constexpr const char* models[] = {"llama", "gpt2", "t5", "bert"};
constexpr const char* rules[] = {"default", "gpt-2", "llama-bpe", "deepseek-llm", "gpt-4o", "starcoder", "jina-v2-de"};

template <class T, std::size_t N>
const T& pick(const T (&list)[N], unsigned i) {
  return list[i % N];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::vocabulary_builder bases[] = {test::sentencepiece_vocabulary(true, 40), test::bpe_vocabulary(40),
                                                   test::sentencepiece_vocabulary(false, 40),
                                                   test::wordpiece_vocabulary()};
  input in{{reinterpret_cast<const char*>(data), size}};
  const unsigned kind = in.byte() % 5;
  test::vocabulary_builder v = kind == 4 ? test::vocabulary_builder{} : bases[kind];
  io::metadata m;
  std::vector<std::pair<std::string, io::value>> overrides;
  std::vector<std::string> erased;
  std::string model = models[kind == 4 ? in.byte() % 4 : kind];
  for (int steps = 0; steps < 64 && in.rest.size() > 24; ++steps) {
    const unsigned op = in.byte() % 12, place = in.byte();
    const std::string key = std::string("tokenizer.ggml.") + pick(keys, place);
    const std::size_t where = v.tokens.empty() ? 0 : (place * 257 + in.byte()) % v.tokens.size();
    switch (op) {
      case 0:
        v.add(in.bytes(in.byte() % 24), static_cast<std::int32_t>(place % 8), in.number());
        break;
      case 1:
        if (!v.tokens.empty()) v.tokens[where] = in.bytes(in.byte() % 24);
        break;
      case 2:
        if (!v.tokens.empty()) v.kinds[where] = static_cast<std::int32_t>(in.byte() % 8);
        break;
      case 3:
        if (!v.tokens.empty()) v.scores[where] = in.number();
        break;
      case 4:
        v.merges.push_back(in.bytes(in.byte() % 12));
        break;
      case 5:
        if (!v.tokens.empty()) v.merges.push_back(v.tokens[where] + " " + v.tokens[in.byte() % v.tokens.size()]);
        break;
      case 6:
        overrides.emplace_back(key, static_cast<std::uint32_t>(in.byte() * 16 + in.byte()));
        break;
      case 7:
        overrides.emplace_back(key, (in.byte() & 1) != 0);
        break;
      case 8:
        overrides.emplace_back(key, in.bytes(in.byte() % 16));
        break;
      case 9: {
        const std::string blob = in.bytes(in.byte() % 64);
        std::vector<std::uint8_t> map{static_cast<std::uint8_t>(blob.size() / 8 * 4), 0, 0, 0};
        map.insert(map.end(), blob.begin(), blob.end());
        map.push_back(0);
        overrides.emplace_back("tokenizer.ggml.precompiled_charsmap", std::move(map));
        break;
      }
      case 10:
        overrides.emplace_back("tokenizer.ggml.pre", std::string(pick(rules, place)));
        break;
      case 11:
        erased.push_back(key);
        break;
    }
  }
  m = v.build(model);
  m.set("tokenizer.ggml.scores", v.scores);
  for (auto& [key, value] : overrides) m.set(key, std::move(value));
  for (const std::string& key : erased) m.erase(key);

  const auto made = text::tokenizer::from_metadata(m);
  if (!made) {
    require(!made.error().message.empty());
    require(made.error().code == errc::malformed || made.error().code == errc::not_found ||
            made.error().code == errc::unsupported);
    return 0;
  }
  const std::string text = std::string(in.rest) + " The <|im_end|> 12 \xFF</s>";
  for (const bool special : {false, true}) {
    const auto ids = made->encode(text, {.add_special = special, .parse_special = special});
    require(ids.has_value());
    for (const token_id id : *ids) require(id >= 0 && id < made->size());
    require(made->decode(*ids, {.render_special = special}).has_value());
  }
  for (token_id id = -1; id <= made->size(); ++id) {
    (void)made->ends_generation(id);
    require(made->piece(id).empty() || made->find(made->piece(id)) == id);
  }
  return 0;
}
