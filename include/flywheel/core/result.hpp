// How flywheel reports failure: result<T> is a value or an error. Nothing in the library throws across its API,
// aborts, exits or prints. Exceptions are available to those who like them: `.value()` throws.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "flywheel/core/config.hpp"

namespace flywheel::inline v0 {

/// What kind of failure it is; decides what a caller can do about it.
enum class errc : std::uint8_t {
  invalid_argument,  ///< The call itself is wrong: fix the arguments.
  not_found,         ///< A file, tensor, key or name does not exist.
  io,                ///< The operating system refused to read, write or map.
  malformed,         ///< A file breaks its format: do not trust it.
  unsupported,       ///< Well formed, but this build or version cannot use it.
  out_of_memory,     ///< An allocation failed; nothing was left half done.
  cancelled,         ///< The caller's stop_token was triggered.
  context_full,      ///< The session holds as many tokens as its context.
  device,            ///< A device failed, timed out or was lost.
  internal,          ///< A bug in flywheel: please report it.
};

/// The stable name of a code, such as "invalid_argument".
[[nodiscard]] FLYWHEEL_API std::string_view to_string(errc code) noexcept;

/// One failure: what went wrong, where, and what to do about it.
struct error {
  errc code = errc::internal;
  std::string message;  ///< What is wrong and what to do, one sentence, no trailing newline.
  std::string where;    ///< The file, tensor, key or argument concerned; may be empty.

  /// "where: message" on one line.
  [[nodiscard]] FLYWHEEL_API std::string to_string() const;
};

/// Thrown by result<T>::value() only.
class FLYWHEEL_API bad_result : public std::exception {
 public:
  explicit bad_result(error e);
  ~bad_result() override;
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }
  [[nodiscard]] const error& why() const noexcept { return error_; }

 private:
  error error_;
  std::string text_;
};

/// A value of type T, or an error. Contextually true when it holds a value.
template <class T>
class [[nodiscard]] result {
 public:
  using value_type = T;
  result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  result(flywheel::error e) : state_(std::in_place_index<1>, std::move(e)) {}

  [[nodiscard]] bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  /// The value; throws bad_result when there is none.
  T& value() & { return require(), *std::get_if<0>(&state_); }
  const T& value() const& { return require(), *std::get_if<0>(&state_); }
  T&& value() && { return require(), std::move(*std::get_if<0>(&state_)); }

  /// The value; undefined when there is none.
  T& operator*() & noexcept { return *std::get_if<0>(&state_); }
  const T& operator*() const& noexcept { return *std::get_if<0>(&state_); }
  T&& operator*() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() noexcept { return std::get_if<0>(&state_); }
  const T* operator->() const noexcept { return std::get_if<0>(&state_); }

  /// The error; undefined when there is a value.
  [[nodiscard]] flywheel::error& error() & noexcept { return *std::get_if<1>(&state_); }
  [[nodiscard]] const flywheel::error& error() const& noexcept { return *std::get_if<1>(&state_); }
  [[nodiscard]] flywheel::error&& error() && noexcept { return std::move(*std::get_if<1>(&state_)); }

  template <class U>
  [[nodiscard]] T value_or(U&& otherwise) const& {
    return has_value() ? **this : static_cast<T>(std::forward<U>(otherwise));
  }

 private:
  void require() const {
    if (!has_value()) throw bad_result(*std::get_if<1>(&state_));
  }
  std::variant<T, flywheel::error> state_;
};

/// Success, or an error.
template <>
class [[nodiscard]] result<void> {
 public:
  using value_type = void;
  result() noexcept = default;
  result(flywheel::error e) : error_(std::move(e)) {}

  [[nodiscard]] bool has_value() const noexcept { return !error_; }
  explicit operator bool() const noexcept { return has_value(); }
  void value() const {
    if (error_) throw bad_result(*error_);
  }
  [[nodiscard]] flywheel::error& error() & noexcept { return *error_; }
  [[nodiscard]] const flywheel::error& error() const& noexcept { return *error_; }
  [[nodiscard]] flywheel::error&& error() && noexcept { return std::move(*error_); }

 private:
  std::optional<flywheel::error> error_;
};

}  // namespace flywheel::inline v0
