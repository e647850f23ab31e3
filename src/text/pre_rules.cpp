#include "pre_rules.hpp"

#include <algorithm>

namespace flywheel::inline v0::text {
namespace {

#define FLYWHEEL_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define FLYWHEEL_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define FLYWHEEL_UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define FLYWHEEL_LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define FLYWHEEL_CASED(suffix)                                                                                        \
  "[^\\r\\n\\p{L}\\p{N}]?[" FLYWHEEL_UPPER "]*[" FLYWHEEL_LOWER "]+" suffix "|[^\\r\\n\\p{L}\\p{N}]?[" FLYWHEEL_UPPER \
  "]+[" FLYWHEEL_LOWER "]*" suffix

// Expressions as their publishers give them (OpenAI tiktoken, or the model's own tokenizer description).
constexpr pre_expression gpt2{"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
                              scan_gpt2};
constexpr pre_expression llama3{
    FLYWHEEL_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" FLYWHEEL_SPACES,
    scan_llama3};
constexpr pre_expression qwen2{FLYWHEEL_CONTRACTIONS
                               "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" FLYWHEEL_SPACES,
                               scan_qwen2};
constexpr pre_expression qwen35{
    FLYWHEEL_CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" FLYWHEEL_SPACES,
    scan_qwen2};
constexpr pre_expression o200k{
    FLYWHEEL_CASED(FLYWHEEL_CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" FLYWHEEL_SPACES,
    scan_o200k};
constexpr pre_expression tekken{FLYWHEEL_CASED("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" FLYWHEEL_SPACES,
                                scan_tekken};
constexpr pre_expression cl100k_long_numbers{
    FLYWHEEL_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" FLYWHEEL_SPACES};
constexpr pre_expression seed_coder{
    FLYWHEEL_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" FLYWHEEL_SPACES};
constexpr pre_expression bailing{
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"};
// Possessive: nothing follows the group, so it never gives back.
constexpr pre_expression exaone_moe{FLYWHEEL_CONTRACTIONS
                                    "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*+(?: \\p{L}\\p{M}*+)*+)++|\\p{N}"
                                    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"};
constexpr pre_expression jais2{
    FLYWHEEL_CONTRACTIONS
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s{512}(?!\\S)"
    "|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}"
    "(?!\\S)|\\s"};
constexpr pre_expression bloom{" ?[^(\\s|.,!?…。，、।۔،)]+"};
constexpr pre_expression deepseek_v3{
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\\r\\n]*|" FLYWHEEL_SPACES};

// Pieces of the longer rules.
constexpr pre_expression digit{"\\p{N}"};
constexpr pre_expression digits_by_three{"\\p{N}{1,3}"};
constexpr pre_expression digits_all{"\\p{N}+"};
constexpr pre_expression three_ascii_digits{"[0-9][0-9][0-9]"};
constexpr pre_expression line_break{"[\\r\\n]"};
constexpr pre_expression lines{"[^\\n]+|[\\n]+"};
constexpr pre_expression punctuation{"[\\p{P}\\$\\+<=>\\^~\\|`]+"};
constexpr pre_expression punctuation_default{"[\\p{P}\\$\\+<=>\\^~\\|]+"};
constexpr pre_expression one_punctuation{"[\\p{P}!-/:-@\\[-`{-~]"};
constexpr pre_expression letters_with_space{"\\s?\\p{L}+"};
constexpr pre_expression punctuation_with_space{"\\s?\\p{P}+"};
constexpr pre_expression east_asian{"[\\x{4e00}-\\x{9fa5}\\x{0800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"};
constexpr pre_expression han_and_kana{"[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"};
// `\s+$`; the look-behind keeps a search from trying every position of a long run.
constexpr pre_expression final_space{"(?<!\\s)\\s+$"};
constexpr pre_expression ascii_and_wide_symbols{
    "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"};
constexpr pre_expression cased_letters{
    "\\s?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{"
    "2af}"
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{"
    "3a3}-\\x{3f5}"
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{"
    "1c90}-\\x{1cba}"
    "\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}"
    "\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-"
    "\\x{1fb4}"
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-"
    "\\x{1fec}"
    "\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}"
    "\\x{2126}"
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}"
    "\\x{2184}"
    "\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}"
    "\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}"
    "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-"
    "\\x{10cb2}"
    "\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+"};
constexpr pre_expression hangul_symbols_bopomofo_han{
    "[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}\\x{2019}\\x{2014}\\x{"
    "ff1a}\\x{ff1b}"
    "\\x{ff0c}\\x{3001}-\\x{303f}\\x{fe30}-\\x{fe4f}]+|[\\x{3105}-\\x{312f}]+|[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}"
    "\\x{30a0}-\\x{30ff}]+"};
constexpr pre_expression o200k_single_digits{
    FLYWHEEL_CASED(FLYWHEEL_CONTRACTIONS "?") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" FLYWHEEL_SPACES};
constexpr pre_expression sentinel{"<sentinel:[0-9]+>"};
constexpr pre_expression image_token{"IMGIMG[A-I]{1,4}Z"};
constexpr pre_expression indentation{"[\\t\\n]|    |  "};

constexpr bool whole_words = true, add_bos = true;

// name, expressions in order, whole_words, add_bos
constexpr pre_rule rules[] = {
    {"gpt-2", {&gpt2}},
    {"phi-2", {&gpt2}},
    {"mpt", {&gpt2}},
    {"olmo", {&gpt2}},
    {"jais", {&gpt2}},
    {"trillion", {&gpt2}},
    {"granite-docling", {&gpt2}},
    {"exaone4", {&gpt2}},
    {"gigachat", {&gpt2}},
    {"mellum", {&gpt2}},
    {"a.x-4.0", {&gpt2}},
    {"modern-bert", {&gpt2}},
    {"roberta-bpe", {&gpt2}},
    {"jina-es", {&gpt2}},
    {"jina-de", {&gpt2}},
    {"jina-v1-en", {&gpt2}},
    {"jina-v2-es", {&gpt2}},
    {"jina-v2-de", {&gpt2}},
    {"jina-v2-code", {&gpt2}},

    {"llama-bpe", {&llama3}, whole_words, add_bos},
    {"llama3", {&llama3}, whole_words, add_bos},
    {"llama-v3", {&llama3}, whole_words, add_bos},
    {"falcon3", {&llama3}, whole_words, add_bos},
    {"falcon-h1", {&llama3}, whole_words, add_bos},
    {"pixtral", {&llama3}, whole_words, add_bos},
    {"midm-2.0", {&llama3}, whole_words, add_bos},
    {"lfm2", {&llama3}, whole_words, add_bos},
    {"jina-v5-nano", {&llama3}, whole_words, add_bos},
    {"dbrx", {&llama3}},
    {"smaug-bpe", {&llama3}},
    {"glm4", {&llama3}},
    {"chatglm-bpe", {&llama3}},

    {"qwen2", {&qwen2}},
    {"deepseek-r1-qwen", {&qwen2}},
    {"megrez", {&qwen2}},
    {"stablelm2", {&qwen2}},
    {"hunyuan", {&qwen2}},
    {"solar-open", {&qwen2}},
    {"grok-2", {&qwen2}},
    {"kormo", {&qwen2}},
    {"f2llmv2", {&qwen2}},
    {"qwen35", {&qwen35}},
    {"laguna", {&lines, &qwen2}},

    {"gpt-4o", {&o200k}},
    {"llama4", {&o200k}},
    {"kanana2", {&o200k}},
    {"talkie", {&o200k}},
    {"minimax-m2", {&o200k}},
    {"tekken", {&tekken}, whole_words, add_bos},
    {"youtu", {&hangul_symbols_bopomofo_han, &o200k_single_digits}, whole_words},

    {"starcoder", {&digit, &gpt2}},
    {"refact", {&digit, &gpt2}},
    {"command-r", {&digit, &gpt2}},
    {"smollm", {&digit, &gpt2}},
    {"codeshell", {&digit, &gpt2}},
    {"exaone", {&digit, &gpt2}},
    {"minerva-7b", {&digit, &gpt2}},
    {"mellum2", {&digit, &gpt2}},

    {"falcon", {&punctuation, &gpt2, &three_ascii_digits}},
    {"default", {&punctuation_default, &gpt2, &digits_all, &three_ascii_digits}},

    {"deepseek-llm", {&line_break, &cased_letters, &ascii_and_wide_symbols, &final_space, &east_asian, &digits_all}},
    {"deepseek-coder", {&line_break, &letters_with_space, &punctuation_with_space, &east_asian, &digit}},
    {"deepseek-v3", {&digits_by_three, &han_and_kana, &deepseek_v3}},
    {"hunyuan-dense", {&digits_by_three, &han_and_kana, &deepseek_v3}},
    {"joyai-llm", {&digits_by_three, &han_and_kana, &deepseek_v3}},

    {"minicpm5", {&digits_by_three, &cl100k_long_numbers}, whole_words},
    {"seed-coder", {&seed_coder}},
    {"bailingmoe", {&bailing}},
    {"bailingmoe2", {&bailing}},
    {"llada-moe", {&bailing}},
    {"exaone-moe", {&exaone_moe}},
    {"jais-2", {&jais2}},
    {"poro-chat", {&bloom}},
    {"bloom", {&bloom}},
    {"gpt3-finnish", {&bloom}},
    {"viking", {&bloom, &digit}},
    {"chameleon", {&sentinel, &image_token, &indentation, &digit, &one_punctuation, &gpt2}, !whole_words, add_bos},
};

}  // namespace

std::span<const pre_rule> pre_rules() noexcept { return rules; }

const pre_rule* find_pre_rule(std::string_view name) noexcept {
  const auto* found =
      std::find_if(std::begin(rules), std::end(rules), [&](const pre_rule& r) { return r.name == name; });
  return found == std::end(rules) ? nullptr : found;
}

}  // namespace flywheel::inline v0::text
