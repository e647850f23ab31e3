#include "flywheel/core/result.hpp"

namespace flywheel::inline v0 {

std::string_view to_string(errc code) noexcept {
  switch (code) {
    case errc::invalid_argument:
      return "invalid_argument";
    case errc::not_found:
      return "not_found";
    case errc::io:
      return "io";
    case errc::malformed:
      return "malformed";
    case errc::unsupported:
      return "unsupported";
    case errc::out_of_memory:
      return "out_of_memory";
    case errc::cancelled:
      return "cancelled";
    case errc::context_full:
      return "context_full";
    case errc::device:
      return "device";
    case errc::internal:
      return "internal";
  }
  return "unknown";
}

std::string error::to_string() const { return where.empty() ? message : where + ": " + message; }

bad_result::bad_result(error e) : error_(std::move(e)), text_(error_.to_string()) {}
bad_result::~bad_result() = default;

}  // namespace flywheel::inline v0
