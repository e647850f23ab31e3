// Key-value metadata of a model file: typed values in file order, with checked access.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::io {

/// A value as GGUF types it. Arrays are homogeneous; arrays of arrays are refused by the reader.
using value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, float,
                           bool, std::string, std::uint64_t, std::int64_t, double,  //
                           std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                           std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                           std::vector<float>, std::vector<bool>, std::vector<std::string>, std::vector<std::uint64_t>,
                           std::vector<std::int64_t>, std::vector<double>>;

/// What a value is, for messages and listings: "u32", "string", "f32 array".
[[nodiscard]] FLYWHEEL_API std::string_view type_name(const value& v) noexcept;

struct entry {
  std::string key;
  io::value value;
};

/// Ordered, unique keys. A value type like the containers it is made of: copying it and set() may throw
/// std::bad_alloc, which changes nothing. Reading is thread-safe.
class FLYWHEEL_API metadata {
 public:
  metadata() = default;
  metadata(const metadata& other);
  metadata(metadata&&) noexcept = default;
  metadata& operator=(metadata other) noexcept;
  ~metadata() = default;

  [[nodiscard]] std::span<const entry> entries() const& noexcept { return entries_; }
  std::span<const entry> entries() && = delete;  // would outlive its owner
  [[nodiscard]] bool contains(std::string_view key) const noexcept { return find(key) != nullptr; }
  /// Null when there is no such key.
  [[nodiscard]] const value* find(std::string_view key) const noexcept;
  /// Adds at the end, or replaces in place.
  void set(std::string key, value v);
  /// False when there is no such key.
  bool erase(std::string_view key);

  // Typed access. Each converts between integer widths when the number fits, and says which key is missing
  // (not_found) or of the wrong type or out of range (malformed). integers() takes integers of any width, floats() also
  // f64; neither takes a single number for an array. Views live as long as the entry.
  [[nodiscard]] result<std::string_view> string(std::string_view key) const;
  [[nodiscard]] result<std::int64_t> integer(std::string_view key) const;
  [[nodiscard]] result<double> number(std::string_view key) const;  ///< Integers convert too.
  [[nodiscard]] result<bool> boolean(std::string_view key) const;
  [[nodiscard]] result<std::span<const std::string>> strings(std::string_view key) const;
  [[nodiscard]] result<std::vector<std::int64_t>> integers(std::string_view key) const;
  [[nodiscard]] result<std::vector<float>> floats(std::string_view key) const;

 private:
  std::vector<entry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;  // key -> its place in entries_
};

}  // namespace flywheel::inline v0::io
