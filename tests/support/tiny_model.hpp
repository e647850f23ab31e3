// Makes small random GGUF models for tests: a complete `llama` file with a SentencePiece vocabulary, a few kilobytes
// large. The same parameters give the same bytes on every machine.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/core/tensor.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/io/metadata.hpp"
#include "flywheel/io/writer.hpp"

namespace flywheel::test {

struct tiny_model {
  std::int32_t hidden = 32;
  std::int32_t layers = 1;
  std::int32_t heads = 4;      ///< hidden / heads is the head size; it must be even.
  std::int32_t kv_heads = 2;   ///< Divides heads.
  std::int32_t ffn = 64;       ///< Of one expert, when there are experts.
  std::int32_t vocab = 320;    ///< At least 259: unknown, bos, eos and the 256 bytes; the rest is made of letters.
  std::int32_t context = 128;  ///< Positions it claims to be trained for.
  dtype weights = dtype::f32;  ///< Of matrices whose rows are whole blocks of it; the others and the norms are f32.
  std::int32_t experts = 0;    ///< 0: dense.
  std::int32_t experts_used = 2;
  bool tied = true;        ///< No output.weight; the embedding serves twice.
  bool vocabulary = true;  ///< Write tokenizer.ggml.* keys.
  std::uint64_t seed = 1;
  std::string architecture = "llama";
  std::string name = "tiny";
};

/// A tensor's declaration and its values before encoding.
struct tiny_tensor {
  io::tensor_plan plan;
  std::vector<float> values;
};

/// Roughly normal numbers that do not depend on the standard library's distributions.
class tiny_random {
 public:
  explicit tiny_random(std::uint64_t seed) : state_(seed) {}
  /// Uniform in [0, 1). splitmix64, Steele et al. 2014.
  float uniform() {
    state_ += 0x9E3779B97F4A7C15ULL;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    return static_cast<float>(z >> 40) * 0x1p-24F;
  }
  /// Variance 1: the sum of twelve uniform numbers, less its mean.
  float normal() {
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }

 private:
  std::uint64_t state_;
};

/// Pieces in id order: <unk>, <s>, </s>, 256 bytes, then the space mark, letters, and merges of them.
inline std::vector<std::string> tiny_pieces(std::int32_t count) {
  if (count < 259) throw std::invalid_argument("tiny_model: vocab must be at least 259");
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    pieces.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }
  const std::string space = "\xE2\x96\x81";  // U+2581, SentencePiece's mark for a space
  pieces.push_back(space);
  for (char c = 'a'; c <= 'z'; ++c) pieces.emplace_back(1, c);
  for (const char* merge : {"th", "he", "in", "er", "an", "on", "re", "the", "ing", "and", "ll", "hell", "hello"})
    pieces.emplace_back(merge);
  for (const char* start : {"t", "a", "th", "the", "and", "h", "w"}) pieces.push_back(space + start);
  for (char first = 'a'; first <= 'z'; ++first)
    for (char second : {'a', 'e', 'i', 'o', 'u'}) {
      const std::string pair = {first, second};
      if (pair != "he" && pair != "re") pieces.push_back(pair);
    }
  for (std::int32_t extra = 0; static_cast<std::int32_t>(pieces.size()) < count; ++extra)
    pieces.push_back("<extra_" + std::to_string(extra) + ">");  // never merged: keeps larger vocabularies unique
  pieces.resize(static_cast<std::size_t>(count));
  return pieces;
}

inline io::metadata tiny_metadata(const tiny_model& m) {
  const auto u32 = [](std::int32_t v) { return io::value(static_cast<std::uint32_t>(v)); };
  const std::string prefix = m.architecture + ".";
  io::metadata meta;
  meta.set("general.architecture", m.architecture);
  meta.set("general.name", m.name);
  meta.set(prefix + "context_length", u32(m.context));
  meta.set(prefix + "embedding_length", u32(m.hidden));
  meta.set(prefix + "block_count", u32(m.layers));
  meta.set(prefix + "feed_forward_length", u32(m.ffn));
  meta.set(prefix + "attention.head_count", u32(m.heads));
  meta.set(prefix + "attention.head_count_kv", u32(m.kv_heads));
  meta.set(prefix + "attention.layer_norm_rms_epsilon", 1e-5F);
  meta.set(prefix + "rope.dimension_count", u32(m.hidden / m.heads));
  meta.set(prefix + "rope.freq_base", 10000.0F);
  meta.set(prefix + "vocab_size", u32(m.vocab));
  if (m.experts > 0) {
    meta.set(prefix + "expert_count", u32(m.experts));
    meta.set(prefix + "expert_used_count", u32(m.experts_used));
  }
  if (!m.vocabulary) return meta;

  std::vector<std::string> pieces = tiny_pieces(m.vocab);
  std::vector<float> scores(pieces.size(), 0.0F);
  std::vector<std::int32_t> kinds(pieces.size(), 1);
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    if (id == 0)
      kinds[id] = 2;  // unknown
    else if (id < 3)
      kinds[id] = 3;  // control
    else if (id < 259)
      kinds[id] = 6;  // byte
    else
      scores[id] = -static_cast<float>(id - 258);  // earlier pieces merge first
  }
  meta.set("tokenizer.ggml.model", std::string("llama"));
  meta.set("tokenizer.ggml.pre", std::string("default"));
  meta.set("tokenizer.ggml.tokens", std::move(pieces));
  meta.set("tokenizer.ggml.scores", std::move(scores));
  meta.set("tokenizer.ggml.token_type", std::move(kinds));
  meta.set("tokenizer.ggml.bos_token_id", u32(1));
  meta.set("tokenizer.ggml.eos_token_id", u32(2));
  meta.set("tokenizer.ggml.unknown_token_id", u32(0));
  meta.set("tokenizer.ggml.add_bos_token", true);
  meta.set("tokenizer.ggml.add_eos_token", false);
  meta.set("tokenizer.ggml.add_space_prefix", true);
  return meta;
}

inline std::vector<tiny_tensor> tiny_tensors(const tiny_model& m) {
  std::vector<tiny_tensor> tensors;
  tiny_random random(m.seed);
  const auto matrix = [&](std::string name, shape dims) {
    const dtype_info* facts = info(m.weights);
    const bool whole = facts != nullptr && dims.cols() % facts->block_elements == 0;
    tiny_tensor t{{std::move(name), whole ? m.weights : dtype::f32, dims, 0}, {}};
    t.values.resize(static_cast<std::size_t>(dims.elements()));
    const float scale = 1.0F / std::sqrt(static_cast<float>(dims.cols()));
    for (float& v : t.values) v = random.normal() * scale;
    tensors.push_back(std::move(t));
  };
  const auto norm = [&](std::string name) {
    tiny_tensor t{{std::move(name), dtype::f32, {m.hidden}, 0}, {}};
    t.values.resize(static_cast<std::size_t>(m.hidden));
    for (float& v : t.values) v = 1.0F + 0.1F * random.normal();
    tensors.push_back(std::move(t));
  };
  const std::int64_t head = m.hidden / m.heads;
  matrix("token_embd.weight", {m.vocab, m.hidden});
  for (std::int32_t layer = 0; layer < m.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    norm(block + "attn_norm.weight");
    matrix(block + "attn_q.weight", {m.heads * head, m.hidden});
    matrix(block + "attn_k.weight", {m.kv_heads * head, m.hidden});
    matrix(block + "attn_v.weight", {m.kv_heads * head, m.hidden});
    matrix(block + "attn_output.weight", {m.hidden, m.heads * head});
    norm(block + "ffn_norm.weight");
    if (m.experts > 0) {
      matrix(block + "ffn_gate_inp.weight", {m.experts, m.hidden});
      matrix(block + "ffn_gate_exps.weight", {m.experts, m.ffn, m.hidden});
      matrix(block + "ffn_up_exps.weight", {m.experts, m.ffn, m.hidden});
      matrix(block + "ffn_down_exps.weight", {m.experts, m.hidden, m.ffn});
    } else {
      matrix(block + "ffn_gate.weight", {m.ffn, m.hidden});
      matrix(block + "ffn_up.weight", {m.ffn, m.hidden});
      matrix(block + "ffn_down.weight", {m.hidden, m.ffn});
    }
  }
  norm("output_norm.weight");
  if (!m.tied) matrix("output.weight", {m.vocab, m.hidden});
  return tensors;
}

/// Writes metadata and tensors as a GGUF file, values encoded by the reference codecs. Throws on failure.
inline void write_tensors(const std::filesystem::path& path, const io::metadata& meta,
                          std::span<const tiny_tensor> tensors, io::container kind = io::container::gguf) {
  std::vector<io::tensor_plan> plans;
  for (const tiny_tensor& t : tensors) plans.push_back(t.plan);
  io::writer out = std::move(io::writer::create(path, kind, meta, plans)).value();
  for (const tiny_tensor& t : tensors) {
    const formats::encode_fn encode = formats::find_encoder(t.plan.type);
    if (encode == nullptr)
      throw std::invalid_argument("tiny_model: no encoder for " + std::string(to_string(t.plan.type)));
    std::vector<std::byte> bytes(dense_bytes(t.plan.type, t.plan.dims).value());
    const std::int64_t cols = t.plan.dims.cols();
    for (std::int64_t row = 0; row < t.plan.dims.rows(); ++row)
      encode(t.values.data() + row * cols, cols,
             bytes.data() + static_cast<std::size_t>(row) * row_bytes(t.plan.type, cols));
    out.write(bytes).value();
  }
  out.finish().value();
}

/// Writes the model; `edit` may change the metadata and the tensors first, to make a damaged or unusual one.
inline void write_tiny_model(const std::filesystem::path& path, const tiny_model& m = {},
                             const std::function<void(io::metadata&, std::vector<tiny_tensor>&)>& edit = {}) {
  io::metadata meta = tiny_metadata(m);
  std::vector<tiny_tensor> tensors = tiny_tensors(m);
  if (edit) edit(meta, tensors);
  write_tensors(path, meta, tensors);
}

/// All bytes of a file. Throws when it cannot be read.
inline std::vector<std::byte> read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

}  // namespace flywheel::test
