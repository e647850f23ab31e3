#include <array>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/detail/utf8.hpp"
#include "state.hpp"

namespace flywheel::inline v0::text {
namespace {

/// Spaces between English words and their punctuation, as BERT's published clean-up removes them.
constexpr std::array<std::pair<std::string_view, std::string_view>, 10> untidy{{{" .", "."},
                                                                                {" ?", "?"},
                                                                                {" !", "!"},
                                                                                {" ,", ","},
                                                                                {" ' ", "'"},
                                                                                {" n't", "n't"},
                                                                                {" 'm", "'m"},
                                                                                {" 's", "'s"},
                                                                                {" 've", "'ve"},
                                                                                {" 're", "'re"}}};

}  // namespace

std::size_t drain(std::string_view pending, bool tidy, bool repair, bool last, std::string& out) {
  std::size_t at = 0;
  while (at < pending.size()) {
    const std::string_view rest = pending.substr(at);
    const char c = rest[0];
    if (tidy && c == ' ') {
      bool replaced = false, undecided = false;
      for (const auto& [spaced, plain] : untidy) {
        if (rest.starts_with(spaced)) {
          out.append(plain);
          at += spaced.size();
          replaced = true;
          break;
        }
        undecided = undecided || spaced.starts_with(rest);
      }
      if (replaced) continue;
      if (undecided && !last) break;
    } else if (repair && static_cast<unsigned char>(c) >= 0x80) {
      if (const std::size_t length = detail::utf8_length(rest)) {
        out.append(rest.substr(0, length));
        at += length;
        continue;
      }
      if (!last && detail::is_utf8_beginning(rest)) break;
      out.append(detail::utf8_replacement);
      ++at;
      continue;
    }
    out.push_back(c);
    ++at;
  }
  return at;
}

bool tokenizer::state::render(token_id id, const decode_options& options, bool first, std::string& out) const {
  const token_kind k = tokens.kind(id);
  const bool special_kind = k == token_kind::control || k == token_kind::unknown;
  if (special_kind && !options.render_special) return false;
  const std::size_t before = out.size();
  model->render(id, out);
  if (first && options.strip_leading_space && space_prefix && !special_kind && k != token_kind::byte &&
      out.size() > before && out[before] == ' ')
    out.erase(before, 1);
  return true;
}

decoder::decoder(tokenizer vocabulary, decode_options options, bool continues)
    : vocabulary_(std::move(vocabulary)), options_(options), first_(!continues) {}

result<std::string> decoder::push(token_id id) {
  return detail::guarded([&]() -> result<std::string> {
    const auto& state = vocabulary_.state_;
    if (state == nullptr) return error{errc::invalid_argument, "the decoder has no vocabulary", "id"};
    if (!state->tokens.contains(id))
      return error{
          errc::invalid_argument,
          "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(state->tokens.size()),
          "id"};
    std::string pending = pending_, out;
    const bool shown = state->render(id, options_, first_, pending);
    pending.erase(0, drain(pending, state->kind == model_kind::wordpiece, true, false, out));
    pending_.swap(pending);  // from here on nothing fails
    first_ = first_ && !shown;
    return out;
  });
}

std::string decoder::flush() noexcept {
  // At most three bytes wait, and become at most nine: a string of that length needs no memory of its own.
  std::string out;
  drain(pending_, vocabulary_.state_ != nullptr && vocabulary_.state_->kind == model_kind::wordpiece, true, true, out);
  pending_.clear();
  return out;
}

}  // namespace flywheel::inline v0::text
