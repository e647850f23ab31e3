// Makes an allocation fail on purpose. Using this header replaces the program's operator new.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <new>

namespace flywheel::test {

/// While it lives, the calling thread's allocation number `countdown` (from 0) through operator new fails, and, unless
/// `once`, every later one. Threads do not influence each other.
class fail_allocations {
 public:
  explicit fail_allocations(std::uint64_t countdown, bool once = false) noexcept;
  ~fail_allocations();
  fail_allocations(const fail_allocations&) = delete;
  fail_allocations& operator=(const fail_allocations&) = delete;
  /// Whether one has failed: false means that the code under test needed no more than `countdown`.
  [[nodiscard]] bool failed() const noexcept;
};

/// Allocations through operator new by the calling thread so far.
[[nodiscard]] std::uint64_t allocation_count() noexcept;

/// The most bytes, beyond those that were out when it was made, that all threads held at once through operator new.
class peak_of_allocations {
 public:
  peak_of_allocations() noexcept;
  [[nodiscard]] std::uint64_t bytes() const noexcept;

 private:
  std::int64_t before_;
};

/// A memory resource that fails when told to and counts what is out.
class failing_resource : public std::pmr::memory_resource {
 public:
  std::int64_t allocations_left = -1;  ///< -1: never fails.
  std::int64_t live_bytes = 0;
  std::int64_t live_blocks = 0;
  std::int64_t allocations = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (allocations_left == 0) throw std::bad_alloc();
    if (allocations_left > 0) --allocations_left;
    void* p = std::pmr::new_delete_resource()->allocate(bytes, alignment);
    live_bytes += static_cast<std::int64_t>(bytes);
    ++live_blocks;
    ++allocations;
    return p;
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    live_bytes -= static_cast<std::int64_t>(bytes);
    --live_blocks;
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace flywheel::test
