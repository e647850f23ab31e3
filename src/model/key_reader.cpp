#include "src/model/key_reader.hpp"

#include <algorithm>
#include <cmath>

namespace flywheel::inline v0::detail {

std::int64_t key_reader::integer(const char* key, std::int64_t low, std::int64_t high) {
  const std::string name = prefix_ + key;
  if (failure) return low;
  if (auto many = meta_.integers(name); many && !many->empty()) {
    for (std::int64_t value : *many)
      if (value != many->front()) {
        failure = error{errc::unsupported, "unsupported: the layers of this model differ in this number", name};
        return low;
      }
    return check(name, many->front(), low, high);
  }
  auto value = meta_.integer(name);
  if (!value) {
    failure = std::move(value).error();
    return low;
  }
  return check(name, *value, low, high);
}

std::int64_t key_reader::integer_or(const char* key, std::int64_t otherwise, std::int64_t low, std::int64_t high) {
  return has(key) ? integer(key, low, high) : otherwise;
}

std::vector<std::int64_t> key_reader::integers(const char* key, std::int64_t n_layers, std::int64_t low,
                                               std::int64_t high) {
  const auto size = static_cast<std::size_t>(n_layers);
  auto many = meta_.integers(prefix_ + key);
  if (!many) return std::vector<std::int64_t>(size, integer(key, low, high));
  if (many->size() != size) {
    refuse(key, errc::malformed,
           "holds " + std::to_string(many->size()) + " numbers for " + std::to_string(n_layers) + " layers");
    return std::vector<std::int64_t>(size, low);
  }
  for (std::int64_t& value : *many) value = failure ? low : check(prefix_ + key, value, low, high);
  return *std::move(many);
}

double key_reader::number_or(const char* key, double otherwise, double low, double high) {
  const std::string name = prefix_ + key;
  if (failure || !has(key)) return otherwise;
  auto value = meta_.number(name);
  if (!value) {
    failure = std::move(value).error();
  } else if (!std::isfinite(*value) || *value < low || *value > high) {
    failure = error{errc::malformed, "the number " + std::to_string(*value) + " is out of range", name};
  } else {
    return *value;
  }
  return otherwise;
}

std::string key_reader::string_or(const char* key, std::string otherwise) {
  if (failure || !has(key)) return otherwise;
  auto value = meta_.string(prefix_ + key);
  if (!value) {
    failure = std::move(value).error();
    return otherwise;
  }
  return std::string(*value);
}

bool key_reader::boolean_or(const char* key, bool otherwise) {
  if (failure || !has(key)) return otherwise;
  auto value = meta_.boolean(prefix_ + key);
  if (!value) failure = std::move(value).error();
  return value ? *value : otherwise;
}

std::vector<bool> key_reader::booleans(const char* key, std::int64_t n_layers) {
  const auto size = static_cast<std::size_t>(n_layers);
  const io::value* found = meta_.find(prefix_ + key);
  if (const auto* flags = found ? std::get_if<std::vector<bool>>(found) : nullptr) {
    if (flags->size() == size) return *flags;
    refuse(key, errc::malformed,
           "holds " + std::to_string(flags->size()) + " values for " + std::to_string(n_layers) + " layers");
    return std::vector<bool>(size, false);
  }
  const std::vector<std::int64_t> numbers = integers(key, n_layers, 0, 1);
  return {numbers.begin(), numbers.end()};
}

void key_reader::refuse(const char* key, errc code, std::string message) {
  if (!failure) failure = error{code, std::move(message), prefix_ + key};
}

std::int64_t key_reader::check(const std::string& name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return value;
  failure = error{
      errc::malformed,
      "the number " + std::to_string(value) + " is not between " + std::to_string(low) + " and " + std::to_string(high),
      name};
  return low;
}

}  // namespace flywheel::inline v0::detail
