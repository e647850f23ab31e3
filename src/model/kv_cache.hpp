// The keys and values of one sequence, in pages of kv_page_tokens positions. One block of memory holds the pages of all
// layers for the same positions; blocks are shared between forks and copied when one side writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/ops.hpp"
#include "flywheel/core/result.hpp"
#include "src/model/engine.hpp"

namespace flywheel::inline v0::detail {

/// Positions 0 .. size()-1 are filled. To add some: reserve(), write their rows, advance(). One thread at a time;
/// forks are independent of each other, also on different threads.
class kv_cache {
 public:
  /// Empty; holds no pages yet. Errors: invalid_argument (kv_type is not f16, f32, q8_0 or q4_0, or
  /// does not fit head_dim; sizes not positive or too large).
  /// `memory` null: the default resource; it must outlive the cache and its forks.
  [[nodiscard]] static result<kv_cache> create(const kv_layout& layout, dtype kv_type,
                                               std::pmr::memory_resource* memory = nullptr);
  kv_cache(kv_cache&&) noexcept = default;
  kv_cache& operator=(kv_cache&&) noexcept = default;

  /// Bytes of a cache that reserved `positions`, known beforehand. Errors: those of create; out_of_memory when the
  /// number does not fit size_t.
  [[nodiscard]] static result<std::size_t> bytes_for(const kv_layout& layout, dtype kv_type, std::int64_t positions);

  [[nodiscard]] const kv_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] dtype kv_type() const noexcept { return type_; }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  /// Bytes of pages and page tables. Pages shared with forks count in each of them.
  [[nodiscard]] std::size_t bytes() const noexcept;

  /// Makes positions size() .. positions-1 writable: allocates missing pages, copies a shared one that is partly
  /// filled. Error: out_of_memory; the cache is as before.
  [[nodiscard]] result<void> reserve(std::int64_t positions);
  /// Declares the rows up to `positions` (which were reserved) as written.
  void advance(std::int64_t positions) noexcept { size_ = positions; }
  /// Forgets everything from `positions` on and frees pages that are not needed any more.
  void truncate(std::int64_t positions) noexcept;
  /// Shares the filled pages. Error: out_of_memory.
  [[nodiscard]] result<kv_cache> fork() const;

  /// Pages of one layer in order of position. Rows from size() on may be written when they were reserved; the array is
  /// valid until the next call of reserve().
  [[nodiscard]] std::byte* const* pages(std::int32_t layer) noexcept {
    return table_.data() + static_cast<std::size_t>(layer) * capacity_;
  }
  [[nodiscard]] const std::byte* const* pages(std::int32_t layer) const noexcept {
    return table_.data() + static_cast<std::size_t>(layer) * capacity_;
  }

  // For files: the filled rows as a sequence of pieces that depends on layout, type and size() only.

  [[nodiscard]] std::size_t bytes_per_position() const noexcept { return block_bytes_ / kv_page_tokens; }
  /// Calls `piece` for each piece in order; stops at an error. All pieces together are size() * bytes_per_position()
  /// long.
  [[nodiscard]] result<void> visit(function_ref<result<void>(std::span<const std::byte>)> piece) const;
  /// The same for writing: for a cache whose pages are not shared with a fork.
  [[nodiscard]] result<void> visit_writable(function_ref<result<void>(std::span<std::byte>)> piece);

 private:
  struct block {
    std::atomic<std::uint32_t> references{1};
    buffer bytes;
  };
  class block_ref {
   public:
    explicit block_ref(block* taken) noexcept : block_(taken) {}
    block_ref(const block_ref& other) noexcept : block_(other.block_) {
      block_->references.fetch_add(1, std::memory_order_relaxed);
    }
    block_ref(block_ref&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
    block_ref& operator=(block_ref other) noexcept {
      std::swap(block_, other.block_);
      return *this;
    }
    ~block_ref() {
      if (block_ != nullptr && block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete block_;
    }
    /// Nobody else can see it. Acquire: what others did with it before they let go has happened.
    [[nodiscard]] bool unique() const noexcept { return block_->references.load(std::memory_order_acquire) == 1; }
    [[nodiscard]] std::byte* data() const noexcept { return block_->bytes.mutable_data(); }

   private:
    block* block_;
  };

  kv_cache(const kv_layout& layout, dtype type, std::size_t block_bytes, std::pmr::memory_resource* memory) noexcept
      : layout_(layout), type_(type), block_bytes_(block_bytes), memory_(memory) {}
  [[nodiscard]] result<block_ref> new_block() const;
  [[nodiscard]] result<void> grow(std::size_t blocks);
  void enter(std::size_t index) noexcept;
  template <class F>
  [[nodiscard]] result<void> visit_pieces(F&& piece) const;

  kv_layout layout_;
  dtype type_ = dtype::f16;
  std::size_t block_bytes_ = 0;  ///< [n_layers] pages.
  std::pmr::memory_resource* memory_ = nullptr;
  std::int64_t size_ = 0;
  std::size_t capacity_ = 0;       ///< Blocks that the table has room for.
  std::vector<block_ref> blocks_;  ///< In order of position.
  std::vector<std::byte*> table_;  ///< [n_layers, capacity_]
};

}  // namespace flywheel::inline v0::detail
