#include "src/model/hugging_face/json_file.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr int max_depth = 64;

struct nested_too_deeply {};

}  // namespace

result<json> parse_json(std::string_view text, const std::string& where, const json_filter& filter) {
  const auto bounded = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > max_depth) throw nested_too_deeply{};
    return !filter || filter(depth, event, parsed);
  };
  try {
    return json::parse(text.begin(), text.end(), bounded);
  } catch (const json::parse_error& e) {
    return error{errc::malformed, "the JSON is not valid near its byte " + std::to_string(e.byte), where};
  } catch (const json::exception&) {  // a number beyond every range
    return error{errc::malformed, "the JSON is not valid", where};
  } catch (const nested_too_deeply&) {
    return error{errc::malformed, "the JSON is nested too deeply", where};
  }
}

const json& no_json() noexcept {
  static const json none;
  return none;
}

const json& member(const json& value, std::string_view key) noexcept {
  if (!value.is_object()) return no_json();
  const auto found = value.find(key);
  return found == value.end() ? no_json() : *found;
}

std::string_view text_of(const json& value) noexcept {
  const json& text = value.is_object() ? member(value, "content") : value;
  const auto* string = text.get_ptr<const std::string*>();
  return string == nullptr ? std::string_view{} : std::string_view(*string);
}

}  // namespace flywheel::inline v0::hugging_face
