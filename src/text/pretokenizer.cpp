#include "pretokenizer.hpp"

namespace flywheel::inline v0::text {

result<pretokenizer> pretokenizer::make(const pre_rule& rule, bool fast) {
  pretokenizer p;
  for (const pre_expression* e : rule.steps) {
    if (e == nullptr) break;
    step& s = p.steps_[p.levels_++];
    FLYWHEEL_TRY(s.expression, regex::compile(e->pattern));
    if (fast) s.scan = e->scan;
  }
  return p;
}

std::size_t pretokenizer::next_character(std::string_view text, std::size_t at) noexcept {
  ++at;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  return at;
}

}  // namespace flywheel::inline v0::text
