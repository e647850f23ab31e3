// JSON from a file that is not trusted: a document with bounds on its length and depth.
#pragma once

#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::hugging_face {

using json = nlohmann::json;

/// Sees every event of the parse before the document does: false leaves a value out of it. Depth 0 is the document.
using json_filter = std::function<bool(int depth, json::parse_event_t event, json& parsed)>;

/// Errors: malformed (not JSON, or nested deeper than any such file is). `where` names the file in messages.
[[nodiscard]] result<json> parse_json(std::string_view text, const std::string& where, const json_filter& filter = {});

/// null.
[[nodiscard]] const json& no_json() noexcept;

/// The member of an object; null (which has no members) when `value` is none or has no such member.
[[nodiscard]] const json& member(const json& value, std::string_view key) noexcept;

/// The text of a string, or of the "content" of an object, as files spell tokens; empty otherwise.
[[nodiscard]] std::string_view text_of(const json& value) noexcept;

}  // namespace flywheel::inline v0::hugging_face
