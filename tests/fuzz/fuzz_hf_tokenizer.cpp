// Any bytes as tokenizer.json (the first byte is 't') or tokenizer.model (anything else); what is accepted is used.
#include <string>

#include "flywheel/detail/try.hpp"
#include "flywheel/text/tokenizer.hpp"
#include "fuzz/walk_archive.hpp"
#include "src/model/hugging_face/family.hpp"
#include "src/model/hugging_face/translate.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flywheel;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const char* const name = data[0] == 't'   ? "tokenizer.json"
                           : data[0] == 'c' ? "tokenizer_config.json"
                                            : "tokenizer.model";
  std::map<std::string, std::string, std::less<>> files = {{name, text}};
  if (data[0] == 'c') files["vocab.txt"] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##b\n";
  const hugging_face::folder folder("f", std::move(files), {});
  const hugging_face::config config(nlohmann::json::object(), "config.json");
  const char* const architecture = data[0] == 'c' ? "BertModel" : "LlamaForCausalLM";
  hugging_face::model_builder builder(folder, config, *hugging_face::find_family(architecture));
  const auto done = detail::guarded([&] { return hugging_face::add_vocabulary(builder, 600); });
  if (!done) {
    test::require(!done.error().message.empty(), "an error without words");
    test::require(done.error().code != errc::internal, "an exception came through");
    return 0;
  }
  const auto tokenizer = text::tokenizer::from_metadata(builder.metadata);
  if (!tokenizer) return 0;
  const auto ids = tokenizer->encode("The <|im_end|> 12 \xFF</s> ab", {.add_special = true, .parse_special = true});
  if (ids) (void)tokenizer->decode(*ids);
  return 0;
}
