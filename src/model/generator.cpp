#include "src/model/generator.hpp"

#include <algorithm>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/model/log_sum.hpp"

namespace flywheel::inline v0 {
namespace detail {
namespace {

/// Tokens whose results get room at once, so that generating them allocates nothing.
constexpr std::size_t first_room = 1024;

result<void> check(const session::state& s, const generate_options& o) {
  const auto invalid = [](const char* message, const char* where) {
    return error{errc::invalid_argument, message, where};
  };
  if (s.tokens.empty()) return invalid("the session holds no tokens; prefill a prompt first", "session");
  if (o.max_tokens < -1) return invalid("must be -1 (no limit) or not negative", "generate_options::max_tokens");
  if (o.top_logprobs < 0 || static_cast<std::size_t>(o.top_logprobs) > s.n_vocab())
    return invalid("must be between 0 and the size of the vocabulary", "generate_options::top_logprobs");
  if (!o.stop_texts.empty() && !s.model->tokenizer)
    return invalid("the model has no vocabulary, so there is no text to stop at", "generate_options::stop_texts");
  for (const std::string& stop : o.stop_texts) {
    if (stop.empty()) return invalid("a stop text is empty", "generate_options::stop_texts");
    // Text is given out in whole UTF-8 sequences; holding back from the middle of one would break that.
    if ((static_cast<unsigned char>(stop[0]) & 0xC0U) == 0x80U)
      return invalid("a stop text begins inside a UTF-8 sequence", "generate_options::stop_texts");
  }
  return {};
}

/// Room for `more` elements; doubles, so that it seldom allocates.
template <class Container>
void make_room(Container& c, std::size_t more) {
  if (c.capacity() - c.size() < more) c.reserve(std::max(c.size() + more, 2 * c.capacity()));
}

}  // namespace

result<std::unique_ptr<generator>> generator::create(session::state& s, const generate_options& options) {
  FLYWHEEL_CHECK(check(s, options));
  FLYWHEEL_TRY(sampler chooser, sampler::create(options.sampler));
  const std::int32_t window = options.sampler.penalty_window;
  const std::size_t seen = window < 0 ? s.tokens.size() : std::min(s.tokens.size(), static_cast<std::size_t>(window));
  for (const token_id id : std::span(s.tokens).last(seen)) FLYWHEEL_CHECK(chooser.accept(id));
  return std::unique_ptr<generator>(new generator(s, options, std::move(chooser)));
}

generator::generator(session::state& s, const generate_options& options, flywheel::sampler sampler)
    : session_(s),
      options_(options),
      sampler_(std::move(sampler)),
      matcher_(options.stop_texts),
      progress_(options_.control.progress, "generate") {
  quiet_.stop = options_.control.stop;
  const text::tokenizer& vocabulary = s.model->tokenizer;
  if (vocabulary) {
    text::decode_options how;
    how.render_special = options.render_special;
    // A leading space belongs to the text unless the text only begins here.
    const bool continues = std::any_of(s.tokens.begin(), s.tokens.end(),
                                       [&](token_id id) { return vocabulary.kind(id) != text::token_kind::control; });
    decoder_.emplace(vocabulary, how, continues);
  }
  const std::size_t room = options.max_tokens < 0 ? first_room : std::min<std::size_t>(options.max_tokens, first_room);
  made_.ids.reserve(room);
  if (options.logprobs) made_.logprobs.reserve(room);
  top_.resize(static_cast<std::size_t>(options.top_logprobs));
  made_.top.reserve(std::min(room * top_.size(), first_room));
}

bool generator::known(token_id id) const noexcept {
  // A model may have more rows of logits than its vocabulary has tokens.
  return decoder_ && id < session_.model->tokenizer.size();
}

void generator::end(stop_reason reason) noexcept {
  made_.reason = reason;
  phase_ = phase::ending;
}

result<bool> generator::next() {
  result<bool> more = guarded([&] { return advance(); });
  if (!more) phase_ = phase::over;
  return more;
}

result<bool> generator::advance() {
  if (phase_ == phase::running) {
    FLYWHEEL_TRY(const bool chosen, choose_next());
    if (chosen) return true;
  }
  if (phase_ != phase::ending) return false;
  // What was held back is certain now.
  phase_ = phase::over;
  text_.clear();
  if (decoder_ && matcher_.push(decoder_->flush(), text_))
    made_.reason = stop_reason::stop_text;
  else
    text_ += matcher_.held();
  if (text_.empty()) return false;
  made_.text += text_;
  step_ = {-1, text_, 0, {}};
  return true;
}

void generator::stop() {
  // A step that ended the generation by itself has given its own reason.
  if (phase_ == phase::running) {
    end(stop_reason::callback);
    (void)advance();
  }
  phase_ = phase::over;
}

bool generator::needs_logits() noexcept {
  if (phase_ != phase::running) return false;
  if (options_.max_tokens >= 0 && made_.ids.size() >= static_cast<std::size_t>(options_.max_tokens))
    return end(stop_reason::length), false;
  if (options_.control.stopped()) return end(stop_reason::cancelled), false;
  if (session_.tokens.size() >= static_cast<std::size_t>(session_.options.n_ctx) &&
      session_.options.when_full == when_full::refuse)
    return end(stop_reason::context_full), false;
  return true;
}

result<bool> generator::choose_next() {
  progress_.report(made_.ids.size(), options_.max_tokens >= 0 ? static_cast<std::uint64_t>(options_.max_tokens) : 0);
  if (!needs_logits()) return false;
  if (result<void> done = session_.compute(quiet_); !done) {
    if (done.error().code == errc::cancelled) return end(stop_reason::cancelled), false;
    return std::move(done).error();
  }

  const std::span<const float> logits = session_.logits_view();
  std::span<const float> seen = logits;
  if (options_.adjust) {
    adjusted_.assign(logits.begin(), logits.end());
    FLYWHEEL_CHECK(options_.adjust(session_.tokens, adjusted_));
    seen = adjusted_;
  }
  FLYWHEEL_TRY(const token_id id, sampler_.choose(seen));
  if (!options_.ignore_eos && session_.model->tokenizer.ends_generation(id)) {
    made_.end_token = id;
    return end(stop_reason::end_of_text), false;
  }

  generation_step step;
  step.id = id;
  if (options_.logprobs)
    step.logprob = static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - log_sum(logits));
  const std::size_t ranked = top_probabilities(logits, std::span(top_));
  std::fill(top_.begin() + static_cast<std::ptrdiff_t>(ranked), top_.end(), token_probability{});
  step.top = std::span(top_).first(ranked);
  text_.clear();
  bool stopped = false;
  if (known(id)) {
    FLYWHEEL_TRY(const std::string piece, decoder_->push(id));
    stopped = matcher_.push(piece, text_);
  }
  step.text = text_;

  // Whatever can fail comes first: a step is given as a whole or not at all.
  make_room(made_.ids, 1);
  make_room(made_.text, text_.size());
  if (options_.logprobs) make_room(made_.logprobs, 1);
  make_room(made_.top, top_.size());
  FLYWHEEL_CHECK(sampler_.accept(id));
  session_.push(id);
  made_.ids.push_back(id);
  made_.text += text_;
  if (options_.logprobs) made_.logprobs.push_back(step.logprob);
  made_.top.insert(made_.top.end(), top_.begin(), top_.end());
  step_ = step;
  if (stopped) {
    made_.reason = stop_reason::stop_text;
    phase_ = phase::over;
  }
  return true;
}

}  // namespace detail

generation_stream::generation_stream(result<std::unique_ptr<detail::generator>> made) noexcept {
  if (made)
    generator_ = *std::move(made);
  else
    status_ = std::move(made).error();
}
generation_stream::generation_stream(generation_stream&&) noexcept = default;
generation_stream& generation_stream::operator=(generation_stream&&) noexcept = default;
generation_stream::~generation_stream() = default;

bool generation_stream::next() noexcept {
  if (generator_ == nullptr || !status_) return false;
  result<bool> more = generator_->next();
  if (more) return *more;
  status_ = std::move(more).error();
  return false;
}

const generation_step& generation_stream::step() const noexcept {
  static const generation_step none;
  return generator_ == nullptr ? none : generator_->step();
}

const generation& generation_stream::generated() const noexcept {
  static const generation none;
  return generator_ == nullptr ? none : generator_->made();
}

}  // namespace flywheel::inline v0
