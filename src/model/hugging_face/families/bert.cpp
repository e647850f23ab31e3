// Encoders: BERT, XLM-RoBERTa and Nomic's BERT. How they pool is in the folder of sentence-transformers.
#include <algorithm>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/families/decoder.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

/// XLM-RoBERTa counts positions from pad_token_id + 1 on: the rows before are never used.
result<void> positions(model_builder& model, const io::tensor_info& tensor, const tensor_names& to) {
  const std::int64_t skipped = model.config().count("pad_token_id").value_or(1) + std::int64_t{1};
  if (tensor.dims.rank() != 2 || tensor.dims[0] <= skipped)
    return model.wrong(tensor, "the shape " + tensor.dims.to_string() + " is not [positions, n]");
  return model.add(to.first, {tensor.dims[0] - skipped, tensor.dims[1]},
                   {.from = {tensor}, .cols = tensor.dims[1], .row = [=](std::int64_t r) { return r + skipped; }});
}

constexpr tensor_row bert_tensors[] = {
    {"embeddings.word_embeddings", "token_embd"},
    {"embeddings.token_type_embeddings", "token_types"},
    {"embeddings.position_embeddings", "position_embd"},
    {"embeddings.LayerNorm", "token_embd_norm"},
    {"encoder.layer.{}.attention.self.query", "blk.{}.attn_q"},
    {"encoder.layer.{}.attention.self.key", "blk.{}.attn_k"},
    {"encoder.layer.{}.attention.self.value", "blk.{}.attn_v"},
    {"encoder.layer.{}.attention.output.dense", "blk.{}.attn_output"},
    {"encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm"},
    {"encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up"},
    {"encoder.layer.{}.output.dense", "blk.{}.ffn_down"},
    {"encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm"},
    {"classifier.dense", "cls"},
    {"classifier.out_proj", "cls.output"},
    // Heads for the training tasks, which no embedding needs.
    {"embeddings.position_ids", "", ignored},
    {"pooler.dense", "", ignored},
    {"cls.predictions.bias", "", ignored},
    {"cls.predictions.decoder", "", ignored},
    {"cls.predictions.transform.dense", "", ignored},
    {"cls.predictions.transform.LayerNorm", "", ignored},
    {"cls.seq_relationship", "", ignored},
};

constexpr tensor_row xlm_roberta_tensors[] = {{"embeddings.position_embeddings", "position_embd", positions}};

constexpr tensor_row nomic_bert_tensors[] = {
    {"emb_ln", "token_embd_norm"},
    {"encoder.layers.{}.attn.Wqkv", "blk.{}.attn_qkv"},
    {"encoder.layers.{}.attn.out_proj", "blk.{}.attn_output"},
    {"encoder.layers.{}.norm1", "blk.{}.attn_output_norm"},
    {"encoder.layers.{}.mlp.fc11", "blk.{}.ffn_up"},
    {"encoder.layers.{}.mlp.fc12", "blk.{}.ffn_gate"},
    {"encoder.layers.{}.mlp.fc2", "blk.{}.ffn_down"},
    {"encoder.layers.{}.norm2", "blk.{}.layer_output_norm"},
};

result<void> finish_bert(model_builder& model) {
  model.config().expect_text("hidden_act", {"gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh"});
  model.set("attention.causal", false);
  model.metadata.set("tokenizer.ggml.token_type_count",
                     static_cast<std::uint32_t>(model.config().count("type_vocab_size").value_or(1)));
  return {};
}

result<void> finish_xlm_roberta(model_builder& model) {
  FLYWHEEL_CHECK(finish_bert(model));
  const config& c = model.config();
  const std::int64_t skipped = c.count("pad_token_id").value_or(1) + std::int64_t{1};
  const std::int64_t all = c.required("max_position_embeddings");
  if (all <= skipped)
    return error{errc::malformed, "the number is too small", c.where() + ": key 'max_position_embeddings'"};
  model.set_count("context_length", all - skipped);
  return {};
}

result<void> finish_nomic_bert(model_builder& model) {
  FLYWHEEL_CHECK(add_rope(model));
  const config& c = model.config();
  if (c.has("moe_every_n_layers") && c.count("moe_every_n_layers") != 0U)
    return error{errc::unsupported, "unsupported: the NomicBert models with experts",
                 c.where() + ": key 'moe_every_n_layers'"};
  c.expect_text("activation_function", {"swiglu"});
  for (const char* key : {"prenorm", "parallel_block", "use_rms_norm", "rotary_emb_interleaved"}) c.expect_off(key);
  if (c.number("rotary_emb_fraction").value_or(1) != 1)
    c.fail(errc::unsupported, "rotary_emb_fraction", "unsupported: heads that rotate in part");
  // Versions 1 and 1.5 say 8192 positions but were trained with 2048; beyond, they need another rotary base.
  const std::uint32_t trained = c.count("max_trained_positions").value_or(2048);
  model.set_count("context_length", std::min(trained, c.count("n_positions").value_or(trained)));
  return finish_bert(model);
}

}  // namespace

constinit const family bert_family = {
    .architecture = "bert", .keys = decoder_keys, .tensors = {bert_tensors}, .finish = finish_bert, .prefix = ""};
constinit const family xlm_roberta_family = {.architecture = "bert",
                                             .keys = decoder_keys,
                                             .tensors = {xlm_roberta_tensors, bert_tensors},
                                             .finish = finish_xlm_roberta,
                                             .prefix = ""};
constinit const family nomic_bert_family = {.architecture = "nomic-bert",
                                            .keys = decoder_keys,
                                            .tensors = {nomic_bert_tensors, bert_tensors},
                                            .finish = finish_nomic_bert,
                                            .prefix = ""};

}  // namespace flywheel::inline v0::hugging_face
