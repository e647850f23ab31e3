// Reading an architecture's numbers from metadata: `<architecture>.<key>`, checked, keeping the first failure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::detail {

/// Every function gives a value in the asked range, also after a failure: check `failure` before using what was read.
class key_reader {
 public:
  key_reader(const io::metadata& meta, const std::string& architecture) : meta_(meta), prefix_(architecture + ".") {}

  [[nodiscard]] bool has(const char* key) const { return meta_.contains(prefix_ + key); }
  /// Missing, not a number, out of [low, high]: malformed. Where a file gives one number per layer, they must be equal.
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high);
  std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t low, std::int64_t high);
  /// One number per layer, from a list or from one number that holds for all layers.
  std::vector<std::int64_t> integers(const char* key, std::int64_t n_layers, std::int64_t low, std::int64_t high);
  double number_or(const char* key, double otherwise, double low, double high);
  /// The same as f32, which is what files hold.
  float float_or(const char* key, double otherwise, double low, double high) {
    return static_cast<float>(number_or(key, otherwise, low, high));
  }
  std::string string_or(const char* key, std::string otherwise);
  bool boolean_or(const char* key, bool otherwise);
  /// One truth value per layer, from a list of booleans or of numbers.
  std::vector<bool> booleans(const char* key, std::int64_t n_layers);
  void refuse(const char* key, errc code, std::string message);

  std::optional<error> failure;

 private:
  std::int64_t check(const std::string& name, std::int64_t value, std::int64_t low, std::int64_t high);
  const io::metadata& meta_;
  std::string prefix_;
};

}  // namespace flywheel::inline v0::detail
