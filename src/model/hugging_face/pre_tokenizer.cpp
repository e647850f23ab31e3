// Which rule of src/text/pre_rules.cpp a tokenizer.json asks for: that with the same expressions in the same order.
#include <vector>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/token_table.hpp"
#include "src/text/pre_rules.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

using expressions = std::vector<std::string>;

/// Appends what a pre-tokenizer, or a sequence of them, cuts by.
result<void> collect(const json& part, const std::string& where, expressions& out) {
  const std::string_view type = text_of(member(part, "type"));
  const auto refuse = [&](std::string message) { return error{errc::unsupported, std::move(message), where}; };
  if (type == "Sequence") {
    for (const json& inner : member(part, "pretokenizers")) FLYWHEEL_CHECK(collect(inner, where, out));
  } else if (type == "ByteLevel") {
    const json& own = member(part, "use_regex");  // true where it is not there
    if (!own.is_boolean() || own.get<bool>()) out.emplace_back(text::find_pre_rule("gpt-2")->steps[0]->pattern);
  } else if (type == "Digits") {
    out.emplace_back(member(part, "individual_digits") == json(true) ? "\\p{N}" : "\\p{N}+");
  } else if (type == "Split") {
    const std::string_view regex = text_of(member(member(part, "pattern"), "Regex"));
    const std::string_view behavior = text_of(member(part, "behavior"));
    const bool inverted = member(part, "invert") == json(true);
    // Both keep every match as a word of its own, and so what lies between.
    if (regex.empty() || !(behavior == "Isolated" || (behavior == "Removed" && inverted)))
      return refuse("unsupported pre-tokenizer: a Split with behavior " + io::detail::in_quotes(behavior));
    out.emplace_back(regex);
  } else {
    return refuse("unsupported pre-tokenizer " + io::detail::in_quotes(type));
  }
  return {};
}

bool same(const expressions& wanted, const text::pre_rule& rule) noexcept {
  for (std::size_t i = 0; i < rule.steps.size(); ++i) {
    const bool there = rule.steps[i] != nullptr;
    if (there != (i < wanted.size()) || (there && wanted[i] != rule.steps[i]->pattern)) return false;
  }
  return wanted.size() <= rule.steps.size();
}

}  // namespace

result<std::string> pre_tokenizer_name(const json& pre_tokenizer, bool whole_words, const std::string& where) {
  expressions wanted;
  FLYWHEEL_CHECK(collect(pre_tokenizer, where, wanted));
  const text::pre_rule* fallback = nullptr;
  for (const text::pre_rule& rule : text::pre_rules()) {
    if (!same(wanted, rule)) continue;
    if (rule.whole_words == whole_words) return std::string(rule.name);
    if (fallback == nullptr) fallback = &rule;
  }
  if (fallback != nullptr) return std::string(fallback->name);
  std::string all;
  for (const std::string& expression : wanted) all += (all.empty() ? "" : ", ") + io::detail::in_quotes(expression);
  return error{errc::unsupported,
               "the pre-tokenizer's expression is not a known one, and a wrong one would give wrong tokens: " + all,
               where};
}

}  // namespace flywheel::inline v0::hugging_face
