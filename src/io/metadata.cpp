#include "flywheel/io/metadata.hpp"

#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::io {
namespace {

template <class T>
constexpr bool is_integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

template <class T>
struct element_of {
  using type = void;
};
template <class T>
struct element_of<std::vector<T>> {
  using type = T;
};

error missing(std::string_view key) { return {errc::not_found, "the key is missing", std::string(key)}; }

error wrong_type(std::string_view key, std::string_view wanted, const value& found) {
  return {errc::malformed, "the value must be " + std::string(wanted) + " but is " + std::string(type_name(found)),
          std::string(key)};
}

error out_of_range(std::string_view key) {
  return {errc::malformed, "the number does not fit a signed 64-bit integer", std::string(key)};
}

}  // namespace

std::string_view type_name(const value& v) noexcept {
  static constexpr std::string_view names[] = {
      "u8",        "i8",        "u16",       "i16",        "u32",          "i32",       "f32",       "bool",
      "string",    "u64",       "i64",       "f64",        "u8 array",     "i8 array",  "u16 array", "i16 array",
      "u32 array", "i32 array", "f32 array", "bool array", "string array", "u64 array", "i64 array", "f64 array"};
  static_assert(std::size(names) == std::variant_size_v<value>);
  return v.valueless_by_exception() ? std::string_view("nothing") : names[v.index()];
}

// libstdc++ 12 takes a variant of strings and vectors for one that is never without a value, and so runs into undefined
// behaviour when the copy of an alternative throws. Copying the alternative first and moving it in avoids that.
metadata::metadata(const metadata& other) : index_(other.index_) {
  entries_.reserve(other.entries_.size());
  for (const entry& e : other.entries_)
    std::visit(
        [&](const auto& held) {
          auto copy = held;
          entries_.push_back({e.key, value(std::move(copy))});
        },
        e.value);
}

metadata& metadata::operator=(metadata other) noexcept {
  entries_.swap(other.entries_);
  index_.swap(other.index_);
  return *this;
}

const value* metadata::find(std::string_view key) const noexcept {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

void metadata::set(std::string key, value v) {
  if (const auto found = index_.find(key); found != index_.end()) {
    entries_[found->second].value = std::move(v);
    return;
  }
  const auto place = index_.emplace(key, entries_.size()).first;
  try {
    entries_.push_back({std::move(key), std::move(v)});
  } catch (...) {
    index_.erase(place);
    throw;
  }
}

bool metadata::erase(std::string_view key) {
  const auto found = index_.find(key);
  if (found == index_.end()) return false;
  const std::size_t place = found->second;
  index_.erase(found);
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(place));
  for (auto& [name, position] : index_)
    if (position > place) --position;
  return true;
}

result<std::string_view> metadata::string(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<std::string_view> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    if (const std::string* text = std::get_if<std::string>(v)) return std::string_view(*text);
    return wrong_type(key, "a string", *v);
  });
}

result<std::int64_t> metadata::integer(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<std::int64_t> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    return std::visit(
        [&]<class T>(const T& x) -> result<std::int64_t> {
          if constexpr (is_integer<T>) {
            if (!std::in_range<std::int64_t>(x)) return out_of_range(key);
            return static_cast<std::int64_t>(x);
          } else {
            return wrong_type(key, "an integer", *v);
          }
        },
        *v);
  });
}

result<double> metadata::number(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<double> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    return std::visit(
        [&]<class T>(const T& x) -> result<double> {
          if constexpr (is_integer<T> || std::is_floating_point_v<T>)
            return static_cast<double>(x);
          else
            return wrong_type(key, "a number", *v);
        },
        *v);
  });
}

result<bool> metadata::boolean(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<bool> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    if (const bool* b = std::get_if<bool>(v)) return *b;
    return wrong_type(key, "a bool", *v);
  });
}

result<std::span<const std::string>> metadata::strings(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<std::span<const std::string>> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    if (const auto* list = std::get_if<std::vector<std::string>>(v)) return std::span<const std::string>(*list);
    return wrong_type(key, "an array of strings", *v);
  });
}

result<std::vector<std::int64_t>> metadata::integers(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<std::vector<std::int64_t>> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    return std::visit(
        [&]<class T>(const T& list) -> result<std::vector<std::int64_t>> {
          if constexpr (is_integer<typename element_of<T>::type>) {
            std::vector<std::int64_t> out;
            out.reserve(list.size());
            for (const auto x : list) {
              if (!std::in_range<std::int64_t>(x)) return out_of_range(key);
              out.push_back(static_cast<std::int64_t>(x));
            }
            return out;
          } else {
            return wrong_type(key, "an array of integers", *v);
          }
        },
        *v);
  });
}

result<std::vector<float>> metadata::floats(std::string_view key) const {
  return flywheel::detail::guarded([&]() -> result<std::vector<float>> {
    const value* v = find(key);
    if (v == nullptr) return missing(key);
    if (const auto* list = std::get_if<std::vector<float>>(v)) return *list;
    if (const auto* list = std::get_if<std::vector<double>>(v)) {
      std::vector<float> out;
      out.reserve(list->size());
      for (const double x : *list) out.push_back(static_cast<float>(x));
      return out;
    }
    return wrong_type(key, "an array of floats", *v);
  });
}

}  // namespace flywheel::inline v0::io
