#include "sentencepiece.hpp"

namespace flywheel::inline v0::text {

word_cutter::word_cutter(const vocabulary& v) {
  for (token_id id = 0; id < v.size(); ++id) {
    if (!is_text_kind(v.kind(id))) continue;
    const std::string_view piece = v.piece(id);
    for (std::size_t at = piece.find(escaped_space); at != std::string_view::npos;
         at = piece.find(escaped_space, at + 1)) {
      if (at == 0 || piece.substr(0, at).ends_with(escaped_space)) continue;
      joins_[static_cast<unsigned char>(piece[at - 1])] = true;
    }
  }
}

byte_fallback::byte_fallback(const vocabulary& v, token_id unknown) : complete_(true) {
  for (unsigned b = 0; b < 256; ++b) {
    token_id id = v.byte_token(static_cast<unsigned char>(b));
    if (id < 0) {
      complete_ = false;
      const char byte = static_cast<char>(b);
      id = v.find({&byte, 1});
    }
    tokens_[b] = id >= 0 ? id : unknown;
  }
}

void append_unescaped(std::string_view piece, std::string& out) {
  while (true) {
    const std::size_t at = piece.find(escaped_space);
    out.append(piece.substr(0, at));
    if (at == std::string_view::npos) return;
    out.push_back(' ');
    piece.remove_prefix(at + escaped_space.size());
  }
}

void append_escaped(std::string_view text, std::string& out) {
  while (true) {
    const std::size_t at = text.find(' ');
    out.append(text.substr(0, at));
    if (at == std::string_view::npos) return;
    out.append(escaped_space);
    text.remove_prefix(at + 1);
  }
}

void render_piece(const vocabulary& v, token_id id, std::string& out) {
  const std::string_view piece = v.piece(id);
  switch (v.kind(id)) {
    case token_kind::byte:
      if (const int byte = parse_byte_piece(piece); byte >= 0) {
        out.push_back(static_cast<char>(byte));
        return;
      }
      break;
    case token_kind::normal:
    case token_kind::user_defined:
    case token_kind::unused:
      append_unescaped(piece, out);
      return;
    case token_kind::unknown:
    case token_kind::control:
      break;
  }
  out.append(piece);
}

}  // namespace flywheel::inline v0::text
