// Helpers for code inside the library; not part of the promise.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <system_error>
#include <type_traits>

#include "flywheel/core/result.hpp"

#define FLYWHEEL_CONCAT_2(a, b) a##b
#define FLYWHEEL_CONCAT(a, b) FLYWHEEL_CONCAT_2(a, b)

/// FLYWHEEL_TRY(auto x, f()): declares x from the value of a result, or returns its error.
#define FLYWHEEL_TRY(declaration, ...)                                                                               \
  auto FLYWHEEL_CONCAT(flywheel_try_, __LINE__) = (__VA_ARGS__);                                                     \
  if (!FLYWHEEL_CONCAT(flywheel_try_, __LINE__)) return std::move(FLYWHEEL_CONCAT(flywheel_try_, __LINE__)).error(); \
  declaration = *std::move(FLYWHEEL_CONCAT(flywheel_try_, __LINE__))

/// FLYWHEEL_CHECK(f()): returns the error of a result, if there is one.
#define FLYWHEEL_CHECK(...)                                                                             \
  do {                                                                                                  \
    if (auto flywheel_check = (__VA_ARGS__); !flywheel_check) return std::move(flywheel_check).error(); \
  } while (false)

namespace flywheel::inline v0::detail {

/// Runs `f` (which returns a result<...>) and turns what the standard library throws into an error: the border every
/// public function that may allocate stands behind. Short messages fit the small-string buffer, so reporting that
/// memory ran out allocates nothing.
template <class F>
auto guarded(F&& f) noexcept -> std::invoke_result_t<F> {
  try {
    return std::forward<F>(f)();
  } catch (const std::bad_alloc&) {
    return error{errc::out_of_memory, "out of memory", {}};
  } catch (const std::length_error&) {
    return error{errc::out_of_memory, "out of memory", {}};
  } catch (const std::system_error& e) {
    try {
      return error{errc::io, e.what(), {}};
    } catch (...) {
      return error{errc::io, "system error", {}};
    }
  } catch (const std::exception& e) {
    try {
      return error{errc::internal, e.what(), {}};
    } catch (...) {
      return error{errc::internal, "exception", {}};
    }
  } catch (...) {
    return error{errc::internal, "exception", {}};
  }
}

}  // namespace flywheel::inline v0::detail
