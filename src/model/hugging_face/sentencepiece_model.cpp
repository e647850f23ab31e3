// tokenizer.model: SentencePiece's ModelProto, read with just as much of the protobuf wire format as it takes.
// sentencepiece_model.proto: pieces = 1 {piece = 1, score = 2, type = 3}, trainer_spec = 2 {model_type = 3, unk_id =
// 40, bos_id = 41, eos_id = 42, pad_id = 43}, normalizer_spec = 3 {precompiled_charsmap = 2, add_dummy_prefix = 3,
// remove_extra_whitespaces = 4}.
#include <bit>
#include <cstring>

#include "flywheel/detail/try.hpp"
#include "src/model/hugging_face/token_table.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

/// One field of a message: a number, or bytes.
struct field {
  std::uint32_t id = 0;
  std::uint64_t number = 0;  ///< Wire types 0, 1 and 5.
  std::string_view bytes;    ///< Wire type 2.
};

/// Reads fields front to back; every length is checked against what is left.
class message {
 public:
  explicit message(std::string_view bytes) : rest_(bytes) {}

  /// False at the end, or when the message is damaged.
  bool next(field& out) {
    if (rest_.empty()) return false;
    std::uint64_t tag = 0;
    if (!varint(tag) || tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) return damage();
    out = {.id = static_cast<std::uint32_t>(tag >> 3), .bytes = {}};
    switch (tag & 7) {
      case 0:
        return varint(out.number) || damage();
      case 1:
        return fixed(8, out.number) || damage();
      case 2: {
        std::uint64_t length = 0;
        if (!varint(length) || length > rest_.size()) return damage();
        out.bytes = rest_.substr(0, static_cast<std::size_t>(length));
        rest_.remove_prefix(static_cast<std::size_t>(length));
        return true;
      }
      case 5:
        return fixed(4, out.number) || damage();
      default:
        return damage();  // groups are not used
    }
  }
  [[nodiscard]] bool damaged() const noexcept { return damaged_; }

 private:
  bool damage() {
    damaged_ = true;
    rest_ = {};
    return false;
  }
  bool varint(std::uint64_t& out) {
    out = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      out |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool fixed(std::size_t bytes, std::uint64_t& out) {
    if (rest_.size() < bytes) return false;
    out = 0;
    for (std::size_t i = bytes; i-- > 0;) out = out << 8 | static_cast<unsigned char>(rest_[i]);
    rest_.remove_prefix(bytes);
    return true;
  }

  std::string_view rest_;
  bool damaged_ = false;
};

struct trainer {
  std::uint64_t model_type = 1;  ///< 1: unigram, 2: BPE.
  std::int32_t unknown = 0, bos = 1, eos = 2, padding = -1;
};

bool read_piece(std::string_view bytes, std::string& piece, float& score, std::uint64_t& type) {
  message m(bytes);
  for (field f; m.next(f);) {
    if (f.id == 1) piece = std::string(f.bytes);
    if (f.id == 2) score = std::bit_cast<float>(static_cast<std::uint32_t>(f.number));
    if (f.id == 3) type = f.number;
  }
  return !m.damaged() && type >= 1 && type <= 6;
}

bool read_trainer(std::string_view bytes, trainer& out) {
  message m(bytes);
  for (field f; m.next(f);) {
    const auto id = static_cast<std::int32_t>(static_cast<std::uint32_t>(f.number));
    if (f.id == 3) out.model_type = f.number;
    if (f.id == 40) out.unknown = id;
    if (f.id == 41) out.bos = id;
    if (f.id == 42) out.eos = id;
    if (f.id == 43) out.padding = id;
  }
  return !m.damaged();
}

bool read_normalizer(std::string_view bytes, io::metadata& keys) {
  message m(bytes);
  for (field f; m.next(f);) {
    if (f.id == 2 && !f.bytes.empty())
      keys.set("tokenizer.ggml.precompiled_charsmap", std::vector<std::uint8_t>(f.bytes.begin(), f.bytes.end()));
    if (f.id == 3) keys.set("tokenizer.ggml.add_space_prefix", f.number != 0);
    if (f.id == 4) keys.set("tokenizer.ggml.remove_extra_whitespaces", f.number != 0);
  }
  return !m.damaged();
}

}  // namespace

result<read_vocabulary> read_sentencepiece(std::string_view bytes, const std::string& where, std::int64_t rows) {
  read_vocabulary v{.table = token_table(rows), .scored = true};
  v.keys.set("tokenizer.ggml.add_space_prefix", true);  // the protobuf's defaults
  v.keys.set("tokenizer.ggml.remove_extra_whitespaces", true);
  const error damaged{errc::malformed, "this is not a SentencePiece model, or it is damaged", where};
  trainer t;
  std::int64_t id = 0;
  message m(bytes);
  for (field f; m.next(f);) {
    if (f.id == 1) {
      std::string piece;
      float score = 0;
      std::uint64_t type = 1;
      if (!read_piece(f.bytes, piece, score, type)) return damaged;
      const auto kind = static_cast<text::token_kind>(type);
      if (kind == text::token_kind::user_defined) {
        v.table.add_special(id, std::move(piece), false);
        if (id < rows) v.table.scores[static_cast<std::size_t>(id)] = score;
      } else if (id < rows) {  // models may have fewer rows than the tokenizer has pieces
        FLYWHEEL_CHECK(v.table.set(id, std::move(piece), kind, score, where));
      }
      ++id;
    }
    if (f.id == 2 && !read_trainer(f.bytes, t)) return damaged;
    if (f.id == 3 && !read_normalizer(f.bytes, v.keys)) return damaged;
  }
  if (m.damaged() || id == 0) return damaged;
  if (t.model_type != 1 && t.model_type != 2)
    return error{errc::unsupported, "unsupported kind of SentencePiece model; known are unigram and BPE", where};
  v.model = t.model_type == 2 ? "llama" : "t5";
  if (v.model == "llama") {  // no engine looks at these for BPE
    v.keys.erase("tokenizer.ggml.precompiled_charsmap");
    v.keys.erase("tokenizer.ggml.remove_extra_whitespaces");
  }
  const auto role = [&](const char* name, std::int32_t token) {
    if (token >= 0 && token < v.table.size()) v.special[name] = v.table.tokens[static_cast<std::size_t>(token)];
  };
  role("unk_token", t.unknown);
  role("bos_token", t.bos);
  role("eos_token", t.eos);
  role("pad_token", t.padding);
  return v;
}

}  // namespace flywheel::inline v0::hugging_face
