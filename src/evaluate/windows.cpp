#include <algorithm>

#include "flywheel/detail/try.hpp"
#include "flywheel/evaluate/compare.hpp"

namespace flywheel::inline v0::evaluate {
namespace {

/// Consecutive windows of the text, each by itself behind BOS: every token of the text is scored. A vocabulary without
/// BOS gives windows whose first token cannot be scored.
std::vector<window> whole_windows(std::span<const token_id> text, std::size_t ctx, token_id bos) {
  std::vector<window> all;
  const std::size_t room = bos >= 0 ? ctx - 1 : ctx;
  for (; !text.empty(); text = text.subspan(std::min(room, text.size()))) {
    window w;
    w.text_tokens = std::min(room, text.size());
    if (bos >= 0) w.ids.push_back(bos);
    w.ids.insert(w.ids.end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(w.text_tokens));
    if (w.ids.size() > 1) all.push_back(std::move(w));
  }
  return all;
}

/// Whole chunks of the text; BOS takes the place of a chunk's first token.
std::vector<window> chunks(std::span<const token_id> text, std::size_t ctx, token_id bos, std::size_t first_scored) {
  std::vector<window> all;
  for (; text.size() >= ctx; text = text.subspan(ctx)) {
    window w{{text.begin(), text.begin() + static_cast<std::ptrdiff_t>(ctx)}, first_scored, ctx};
    if (bos >= 0) w.ids[0] = bos;
    all.push_back(std::move(w));
  }
  return all;
}

}  // namespace

result<std::vector<window>> cut_windows(const text::tokenizer& vocabulary, std::string_view text,
                                        const text_options& options) {
  return detail::guarded([&]() -> result<std::vector<window>> {
    if (!vocabulary)
      return error{errc::unsupported, "the model carries no vocabulary; a text cannot be encoded", "cut_windows"};
    const bool whole = options.protocol == protocol::windows;
    if (options.ctx < (whole ? 2 : 4))
      return error{errc::invalid_argument, "is too small: no token would be scored", "ctx"};
    if (options.max_windows < 0) return error{errc::invalid_argument, "must not be negative", "max_windows"};
    const auto ctx = static_cast<std::size_t>(options.ctx);
    const token_id bos = vocabulary.special().add_bos ? vocabulary.special().bos : -1;
    FLYWHEEL_TRY(const std::vector<token_id> ids, vocabulary.encode(text, {.add_special = !whole}));
    std::vector<window> all = whole ? whole_windows(ids, ctx, bos) : chunks(ids, ctx, bos, ctx / 2 + 1);
    if (all.empty())
      return error{errc::invalid_argument,
                   "the text holds " + std::to_string(ids.size()) + " tokens, too few for a window of " +
                       std::to_string(ctx) + "; use a longer text or a smaller window",
                   "text"};
    const auto most = static_cast<std::size_t>(options.max_windows);
    if (most == 0 || most >= all.size()) return all;
    if (options.spread)
      for (std::size_t i = 1; i < most; ++i)
        if (const std::size_t from = i * all.size() / most; from != i) all[i] = std::move(all[from]);
    all.resize(most);
    return all;
  });
}

}  // namespace flywheel::inline v0::evaluate
