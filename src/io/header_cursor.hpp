// Reads a binary header front to back, checking every length against the bytes that remain. Addressable sources are
// read in place; others through a window, so that a callback is asked for few pieces and for little more than the
// header.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::io::detail {

/// After the first failure every call fails; fault() says why, without naming the place.
class header_cursor {
 public:
  /// Reading beyond byte `limit` is refused as unsupported.
  header_cursor(const byte_source& source, std::uint64_t limit)
      : source_(source),
        window_(source.mapped()),
        size_(source.size()),
        addressable_(source.mapped().size() == source.size()),
        limit_(limit) {}

  [[nodiscard]] std::uint64_t position() const noexcept { return base_ + used_; }
  [[nodiscard]] std::uint64_t remaining() const noexcept { return size_ - position(); }
  [[nodiscard]] const std::optional<error>& fault() const noexcept { return fault_; }

  /// Copies out.size() bytes. `what` completes "the file ends inside ...".
  [[nodiscard]] bool read(std::span<std::byte> out, const char* what) {
    if (!available(out.size(), what)) return false;
    while (!out.empty()) {
      if (used_ == window_.size()) {
        // Large pieces go straight to their place.
        if (!addressable_ && out.size() >= window_bytes) {
          if (result<void> done = source_.read(position(), out); !done) return fail(std::move(done).error());
          base_ = position() + out.size();
          used_ = 0;
          window_ = {};
          return true;
        }
        if (!refill()) return false;
      }
      const std::size_t n = std::min(out.size(), window_.size() - used_);
      std::memcpy(out.data(), window_.data() + used_, n);
      used_ += n;
      out = out.subspan(n);
    }
    return true;
  }

  /// A little-endian number.
  template <class T>
  [[nodiscard]] bool number(T& out, const char* what) {
    std::byte bytes[sizeof(T)];
    if (!read(bytes, what)) return false;
    if constexpr (std::endian::native == std::endian::big) std::reverse(std::begin(bytes), std::end(bytes));
    std::memcpy(&out, bytes, sizeof(T));
    return true;
  }

  /// `count` little-endian numbers; nothing is allocated unless the bytes are there.
  template <class T>
  [[nodiscard]] bool numbers(std::vector<T>& out, std::uint64_t count, const char* what) {
    if (count > remaining() / sizeof(T)) return too_long(count, what);
    if (!available(count * sizeof(T), what)) return false;
    out.resize(static_cast<std::size_t>(count));
    if (!read(std::as_writable_bytes(std::span(out)), what)) return false;
    if constexpr (std::endian::native == std::endian::big && sizeof(T) > 1)
      for (T& x : out) {
        auto* bytes = reinterpret_cast<std::byte*>(&x);
        std::reverse(bytes, bytes + sizeof(T));
      }
    return true;
  }

  /// u64 length, then bytes.
  [[nodiscard]] bool text(std::string& out, const char* what) {
    std::uint64_t length = 0;
    if (!number(length, what)) return false;
    if (length > remaining()) return too_long(length, what);
    if (!available(length, what)) return false;
    if (length <= window_.size() - used_) {
      out.assign(reinterpret_cast<const char*>(window_.data() + used_), static_cast<std::size_t>(length));
      used_ += static_cast<std::size_t>(length);
      return true;
    }
    out.resize(static_cast<std::size_t>(length));
    return read(std::as_writable_bytes(std::span(out.data(), out.size())), what);
  }

  bool fail(error e) {
    if (!fault_) fault_ = std::move(e);
    return false;
  }

 private:
  static constexpr std::size_t window_bytes = 64U << 10;

  bool too_long(std::uint64_t claimed, const char* what) {
    return fail({errc::malformed,
                 std::string("the length of ") + what + ", " + std::to_string(claimed) + ", is more than the " +
                     std::to_string(remaining()) + " bytes left can hold",
                 {}});
  }

  bool available(std::uint64_t n, const char* what) {
    if (fault_) return false;
    if (n > remaining()) return fail({errc::malformed, std::string("the file ends inside ") + what, {}});
    if (n > limit_ - std::min(limit_, position()))
      return fail({errc::unsupported, "the header is longer than " + std::to_string(limit_ >> 20) + " MiB", {}});
    return true;
  }

  /// Reads the next window; there is at least one more byte.
  bool refill() {
    base_ += used_;
    used_ = 0;
    window_ = {};
    chunk_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(window_bytes, size_ - base_)));
    if (result<void> done = source_.read(base_, chunk_); !done) return fail(std::move(done).error());
    window_ = chunk_;
    return true;
  }

  const byte_source& source_;
  std::span<const std::byte> window_;  // bytes from base_ on
  std::uint64_t size_;
  std::uint64_t base_ = 0;
  std::size_t used_ = 0;
  std::vector<std::byte> chunk_;
  bool addressable_;
  std::uint64_t limit_;
  std::optional<error> fault_;
};

}  // namespace flywheel::inline v0::io::detail
