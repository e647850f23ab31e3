// Arbitrary text through every kind of vocabulary. Input: byte 0 picks the vocabulary, byte 1 the options, the rest is
// text, or, with bit 7 of byte 1, token ids of four bytes each.
#include <cstdlib>
#include <cstring>

#include "flywheel/detail/utf8.hpp"
#include "text/vocabularies.hpp"

namespace {

using namespace flywheel;

void require(bool holds) {
  if (!holds) std::abort();
}

struct subject {
  text::tokenizer tokens;
  bool lossless;  // valid text comes back as it was
};

const std::vector<subject>& subjects() {
  static const std::vector<subject> all = [] {
    std::vector<subject> s;
    for (const char* rule :
         {"gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken", "starcoder", "falcon", "default", "deepseek-llm",
          "deepseek-coder", "deepseek-v3", "qwen35", "exaone-moe", "jais-2", "bailingmoe"})
      s.push_back({test::make(test::bpe_metadata(rule, 100)), true});
    s.push_back({test::make(test::spm_metadata()), true});
    s.push_back({test::make(test::spm_metadata(false)), false});
    s.push_back({test::make(test::unigram_metadata(true)), true});
    s.push_back({test::make(test::unigram_metadata(false)), false});
    s.push_back({test::make(test::wordpiece_metadata()), false});
    return s;
  }();
  return all;
}

void check_decoder(const text::tokenizer& t, const std::vector<token_id>& ids, const text::decode_options& options) {
  const std::string whole = t.decode(ids, options).value();
  text::decoder d(t, options);
  std::string streamed;
  for (const token_id id : ids) {
    const std::string more = d.push(id).value();
    require(detail::is_utf8(more));
    streamed += more;
  }
  streamed += d.flush();
  require(streamed == detail::repair_utf8(whole));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const subject& s = subjects()[data[0] % subjects().size()];
  const text::tokenizer& t = s.tokens;
  const unsigned flags = data[1];
  const std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  const text::decode_options rendering{.render_special = (flags & 4) != 0, .strip_leading_space = (flags & 8) != 0};
  std::vector<token_id> ids;
  if ((flags & 0x80) != 0) {
    bool in_range = true;
    for (std::size_t i = 0; i + 4 <= rest.size(); i += 4) {
      token_id id = 0;
      std::memcpy(&id, rest.data() + i, 4);
      if ((flags & 0x40) == 0)
        id = static_cast<token_id>(static_cast<std::uint32_t>(id) % static_cast<std::uint32_t>(t.size()));
      in_range = in_range && id >= 0 && id < t.size();
      ids.push_back(id);
    }
    require(t.decode(ids, rendering).has_value() == in_range);
    if (in_range) check_decoder(t, ids, rendering);
    return 0;
  }
  const auto encoded = t.encode(rest, {.add_special = (flags & 1) != 0, .parse_special = (flags & 2) != 0});
  if (!encoded) {
    require(encoded.error().code == errc::invalid_argument);
    return 0;
  }
  for (const token_id id : *encoded) require(id >= 0 && id < t.size());
  check_decoder(t, *encoded, rendering);
  if (s.lossless && (flags & 3) == 0 && detail::is_utf8(rest) && rest.find("<tool>") == std::string_view::npos) {
    std::string expected(rest);
    if (t.model_name() != "bpe")
      for (std::size_t at = 0; (at = expected.find("\u2581", at)) != std::string::npos;) expected.replace(at, 3, " ");
    require(t.decode(*encoded).value() == expected);
  }
  return 0;
}
