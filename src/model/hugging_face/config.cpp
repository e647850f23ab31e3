#include "src/model/hugging_face/config.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace flywheel::inline v0::hugging_face {
namespace {

/// Calls f(key) for each alternative until it says true.
template <class F>
void each_alternative(std::string_view keys, F&& f) {
  while (!keys.empty()) {
    const std::size_t bar = keys.find('|');
    if (f(keys.substr(0, bar))) return;
    keys = bar == keys.npos ? std::string_view{} : keys.substr(bar + 1);
  }
}

std::string_view first_of(std::string_view keys) noexcept { return keys.substr(0, keys.find('|')); }

}  // namespace

config::config(json document, std::string where) : document_(std::move(document)), where_(std::move(where)) {}

std::string_view config::architecture() const noexcept {
  const json& list = member(document_, "architectures");
  return list.is_array() && !list.empty() ? text_of(list.front()) : std::string_view{};
}

const json& config::find(std::string_view keys) const noexcept {
  const json* found = &no_json();
  for (const json* part : {&member(document_, "text_config"), static_cast<const json*>(&document_)}) {
    each_alternative(keys, [&](std::string_view key) {
      if (const json& value = member(*part, key); !value.is_null()) found = &value;
      return !found->is_null();
    });
    if (!found->is_null()) break;
  }
  return *found;
}

std::optional<double> config::default_of(std::string_view keys) const noexcept {
  std::optional<double> value;
  each_alternative(keys, [&](std::string_view key) {
    for (const default_number& d : defaults_)
      if (d.key == key) value = d.value;
    return value.has_value();
  });
  return value;
}

std::optional<double> config::number(std::string_view keys) const {
  const json& value = find(keys);
  if (value.is_null()) return default_of(keys);
  if (value.is_number()) return value.get<double>();
  fail(errc::malformed, first_of(keys), "the value must be a number");
  return std::nullopt;
}

std::optional<std::uint32_t> config::as_count(std::optional<double> value, std::string_view key) const {
  if (!value) return std::nullopt;
  if (*value >= 0 && *value <= std::numeric_limits<std::int32_t>::max() && *value == std::floor(*value))
    return static_cast<std::uint32_t>(*value);
  fail(errc::malformed, key, "the value must be a whole number from 0 to 2147483647");
  return std::nullopt;
}

std::optional<std::uint32_t> config::count(std::string_view keys) const {
  return as_count(number(keys), first_of(keys));
}

bool config::flag(std::string_view keys, bool otherwise) const {
  const json& value = find(keys);
  if (value.is_null()) return otherwise;
  if (value.is_boolean()) return value.get<bool>();
  fail(errc::malformed, first_of(keys), "the value must be true or false");
  return otherwise;
}

std::uint32_t config::required(std::string_view keys) const {
  const std::optional<std::uint32_t> value = count(keys);
  if (value && *value > 0) return *value;
  fail(errc::malformed, first_of(keys), value ? "the number must not be 0" : "the key is missing");
  return 0;
}

std::optional<std::vector<bool>> config::layers_of_type(std::string_view name) const {
  const json& types = find("layer_types");
  if (types.is_null()) return std::nullopt;
  if (!types.is_array() || types.size() != layers()) {
    fail(errc::malformed, "layer_types", "the value must be a list with one name for each layer");
    return std::nullopt;
  }
  std::vector<bool> of_type;
  for (const json& type : types) of_type.push_back(text_of(type) == name);
  return of_type;
}

std::uint32_t config::full_attention_interval(std::uint32_t otherwise) const {
  const std::optional<std::vector<bool>> full = layers_of_type("full_attention");
  if (!full) return otherwise;
  const std::size_t n = full->size(), first = static_cast<std::size_t>(std::ranges::find(*full, true) - full->begin());
  if (first == n) return otherwise > n ? otherwise : static_cast<std::uint32_t>(n) + 1;
  for (std::size_t i = 0; i < n; ++i)
    if ((*full)[i] != ((i + 1) % (first + 1) == 0))
      fail(errc::unsupported, "layer_types", "unsupported: the layers of full attention are not every n-th one");
  return static_cast<std::uint32_t>(first) + 1;
}

void config::expect_text(std::string_view key, std::initializer_list<std::string_view> known) const {
  const json& value = find(key);
  if (value.is_null() || std::ranges::find(known, text_of(value)) != known.end()) return;
  std::string all;
  for (const std::string_view one : known) all.append(all.empty() ? "" : ", ").append(one);
  fail(errc::unsupported, key, "unsupported value; known for this architecture: " + all);
}

void config::expect_off(std::string_view key) const {
  if (flag(key, false)) fail(errc::unsupported, key, "unsupported for this architecture");
}

void config::expect_full_attention_interval(std::uint32_t n) const {
  if (full_attention_interval(n) != n)
    fail(errc::unsupported, "layer_types",
         "unsupported: full attention in others than every " + std::to_string(n) + "th layer");
}

double config::rotary_part(double otherwise) const {
  constexpr std::string_view key = "partial_rotary_factor";
  const double part = number_in(rope(), key).value_or(number(key).value_or(otherwise));
  if (part > 0 && part <= 1) return part;
  fail(errc::malformed, key, "the rotated part of a head is not from 0 to 1");
  return 1;
}

std::uint32_t config::head_dim() const {
  if (const std::optional<std::uint32_t> given = count("head_dim"); given && *given > 0) return *given;
  const std::uint32_t hidden = required("hidden_size|n_embd"), n = heads();
  if (n == 0) return 0;
  if (hidden % n != 0)
    fail(errc::malformed, "num_attention_heads",
         std::to_string(n) + " heads do not divide the hidden size " + std::to_string(hidden));
  return hidden / n;
}

const json& config::rope() const noexcept {
  const json& all = find("rope_parameters|rope_scaling");
  const json& full = member(all, "full_attention");
  return full.is_object() ? full : all;
}

const json& config::sliding_rope() const noexcept {
  return member(find("rope_parameters|rope_scaling"), "sliding_attention");
}

std::optional<double> config::number_in(const json& object, std::string_view key) const {
  const json& value = member(object, key);
  if (value.is_null()) return std::nullopt;
  if (value.is_number()) return value.get<double>();
  fail(errc::malformed, key, "the value must be a number");
  return std::nullopt;
}

std::optional<std::uint32_t> config::count_in(const json& object, std::string_view key) const {
  return as_count(number_in(object, key), key);
}

void config::fail(errc code, std::string_view key, std::string message) const {
  if (!fault_) fault_ = error{code, std::move(message), where_ + ": key '" + std::string(key) + "'"};
}

}  // namespace flywheel::inline v0::hugging_face
