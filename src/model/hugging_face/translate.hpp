// A Hugging Face folder as an archive with GGUF's names and metadata.
#pragma once

#include "src/model/hugging_face/folder.hpp"
#include "src/model/hugging_face/model_builder.hpp"

namespace flywheel::inline v0::hugging_face {

/// Nothing of the weights is read: tensors that only have another name lie in the folder's files, the others are
/// computed when they are read. Errors: malformed and unsupported, naming the file and the key or the tensor.
[[nodiscard]] result<io::archive> translate(const folder& from);

/// The vocabulary: tokenizer.json, tokenizer.model or vocab.txt with tokenizer_config.json and its companions become
/// tokenizer.* keys. None of them: no keys. `rows` is the number of rows of the embedding table; ids without a token
/// become unused tokens.
[[nodiscard]] result<void> add_vocabulary(model_builder& model, std::int64_t rows);

}  // namespace flywheel::inline v0::hugging_face
