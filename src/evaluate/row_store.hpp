// Where a baseline keeps its codes: in memory, and beyond a limit in a temporary file that nobody else sees.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "flywheel/core/result.hpp"

namespace flywheel::inline v0::evaluate {

/// Pieces of codes, appended by one thread, then read by any number of threads. Functions may throw std::bad_alloc.
class row_store {
 public:
  explicit row_store(std::size_t max_memory) : left_(max_memory) {}
  /// Error: io, when the system gives no temporary file or has no room.
  result<void> append(std::span<const std::uint16_t> codes);
  /// The codes of a piece: in place, or read into `scratch`. Error: io.
  [[nodiscard]] result<std::span<const std::uint16_t>> at(std::size_t piece, std::vector<std::uint16_t>& scratch) const;

 private:
  struct piece {
    std::vector<std::uint16_t> codes;  ///< Empty: in the file.
    std::size_t size = 0;
    std::fpos_t position{};
  };
  struct closer {
    void operator()(std::FILE* f) const noexcept { std::fclose(f); }
  };
  std::size_t left_;
  std::vector<piece> pieces_;
  mutable std::mutex mutex_;  ///< The file has one position.
  std::unique_ptr<std::FILE, closer> file_;
};

}  // namespace flywheel::inline v0::evaluate
